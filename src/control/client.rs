//! The client of the control socket, which the command line uses.
//!
//! May use `sys` to connect. Where a supervisor ends during a request, the client turns to its
//! successor. Nothing is printed here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::protocol::{ErrorBody, FaultBody};
use crate::model::{Denial, DenialCode};
use crate::sys::sockets;

/// Why a request got no answer that can be used.
#[derive(Debug)]
pub enum Error {
    /// Nobody listens on the socket.
    NotRunning(std::io::Error),
    /// The supervisor refused the request.
    Denied(Denial),
    /// The manifest that was sent has faults.
    Faulty(Denial, Vec<FaultBody>),
    /// The connection broke, for this reason.
    Broken(String),
    /// The supervisor listens, and has not answered for this long.
    Silent(Duration),
    /// The answer can't be read; most likely the supervisor is another build.
    Unreadable(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::NotRunning(error) => write!(f, "nothing answers on the control socket: {error}"),
            Error::Denied(denial) => write!(f, "{denial}"),
            Error::Faulty(_, faults) => {
                let lines = faults.iter().map(|fault| {
                    format!("{}:{}:{}: {}", fault.file.display(), fault.line, fault.column, fault.message)
                });
                f.write_str(&lines.collect::<Vec<_>>().join("\n"))
            }
            Error::Silent(time) => write!(f, "the supervisor does not answer (not within {time:?})"),
            Error::Broken(reason) => write!(f, "the supervisor has gone: {reason}"),
            Error::Unreadable(reason) => write!(f, "the supervisor's answer can't be read: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Broken(error.to_string())
}

/// How long a supervisor may take to tell what it knows already. One that takes longer is in
/// trouble.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the client looks for the successor of a supervisor that has ended.
const SUCCESSION: Duration = Duration::from_secs(2);

/// A connection that is closed within this time was turned away unheard. After more than `PATIENT`
/// of them in a row the client gives up.
const UNHEARD: Duration = Duration::from_millis(20);
const PATIENT: u32 = 8;

/// A connection to a running tree. It carries one request at a time.
pub struct Client {
    socket: PathBuf,
    since: tokio::time::Instant,
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the supervisor that listens on this socket.
    pub async fn connect(socket: &Path) -> Result<Client, Error> {
        let stream = sockets::connect(socket).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => Error::Silent(PATIENCE),
            _ => Error::NotRunning(error),
        })?;
        let stream = UnixStream::from_std(stream).map_err(Error::NotRunning)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The connection's task ends when the sender is dropped.
        tokio::spawn(connection);
        Ok(Client { socket: socket.to_owned(), since: tokio::time::Instant::now(), sender })
    }

    /// Connects to the supervisor that listens there now, and waits for a moment until one does.
    async fn connect_again(&mut self) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + SUCCESSION;
        loop {
            match Client::connect(&self.socket).await {
                Ok(next) => {
                    *self = next;
                    return Ok(());
                }
                Err(error @ Error::Silent(_)) => return Err(error),
                Err(error) if tokio::time::Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// GETs a path and reads the answer. Where the supervisor ends meanwhile, its successor is asked.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        let mut turned_away = 0;
        loop {
            let answer = match in_time(self.send(Method::GET, path, Bytes::new())).await {
                Ok(response) => read(response).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(Error::Broken(reason)) => self.try_again(&mut turned_away, reason).await?,
                other => return other,
            }
        }
    }

    /// POSTs a body and reads the answer.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &B,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        self.once(Method::POST, path, body.into()).await
    }

    /// POSTs a body and reads the answer. It is an error if the supervisor ends meanwhile, since its
    /// work may be half done.
    pub async fn post_unrepeated<B: Serialize, T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &B,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        let socket = self.socket.clone();
        let answer = async { read(self.send(Method::POST, path, body.into()).await?).await };
        while_it_lives(&socket, answer).await
    }

    /// POSTs a body and follows the server-sent events that answer it. The request is not repeated.
    pub async fn follow_posted<B: Serialize>(&mut self, path: &str, body: &B) -> Result<EventStream, Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        let socket = self.socket.clone();
        let response = while_it_lives(&socket, self.send(Method::POST, path, body.into())).await?;
        match response.status().is_success() {
            true => Ok(EventStream { body: response.into_body(), buffer: Vec::new() }),
            false => Err(denied(response).await),
        }
    }

    /// PUTs a body and reads the answer.
    pub async fn put<B: Serialize, T: DeserializeOwned>(&mut self, path: &str, body: &B) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        self.once(Method::PUT, path, body.into()).await
    }

    /// DELETEs a path and reads the answer.
    pub async fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        self.once(Method::DELETE, path, Bytes::new()).await
    }

    /// Sends a request that must be carried out once. Where the supervisor ends meanwhile, its
    /// successor is asked with the same `Idempotency-Key`, so that nothing is done a second time.
    async fn once<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Error> {
        let mut chance = [0u8; 16];
        getrandom::fill(&mut chance).map_err(broken)?;
        let key: String = chance.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut turned_away = 0;
        loop {
            let socket = self.socket.clone();
            let answer = async {
                let response = self.request(method.clone(), path, body.clone(), Some(&key)).await?;
                read(response).await
            };
            match while_it_lives(&socket, answer).await {
                Err(Error::Broken(reason)) => self.try_again(&mut turned_away, reason).await?,
                other => return other,
            }
        }
    }

    /// Connects again after a connection broke, to the supervisor that runs now. `Err`: no supervisor
    /// runs, or the one that does closes each connection unheard.
    async fn try_again(&mut self, turned_away: &mut u32, reason: String) -> Result<(), Error> {
        let unheard = self.since.elapsed() < UNHEARD;
        *turned_away = if unheard { *turned_away + 1 } else { 0 };
        if *turned_away > PATIENT {
            let why = "this user may not use the control socket, or has too many connections to it";
            return Err(Error::NotRunning(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why)));
        }
        tokio::time::sleep(Duration::from_millis(10) * *turned_away).await;
        self.connect_again().await.map_err(|_| Error::Broken(reason))
    }

    /// GETs a path and follows the server-sent events that come.
    pub async fn follow(&mut self, path: &str) -> Result<EventStream, Error> {
        let mut turned_away = 0;
        let socket = self.socket.clone();
        loop {
            match while_it_lives(&socket, self.send(Method::GET, path, Bytes::new())).await {
                Ok(response) if response.status().is_success() => {
                    return Ok(EventStream { body: response.into_body(), buffer: Vec::new() });
                }
                Ok(response) => return Err(denied(response).await),
                Err(Error::Broken(reason)) => self.try_again(&mut turned_away, reason).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Follows the path again after the supervisor has ended, at its successor.
    pub async fn follow_again(&mut self, path: &str) -> Result<EventStream, Error> {
        self.connect_again().await?;
        self.follow(path).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Error> {
        self.request(method, path, body, None).await
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        key: Option<&str>,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "regrow")
            .header(hyper::header::CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let request = request.body(Full::new(body)).map_err(broken)?;
        self.sender.send_request(request).await.map_err(broken)
    }
}

/// Waits for an answer that may take its time. While there is none, the supervisor is asked now and
/// then for something that it can tell at once, since one that stands still would never answer.
async fn while_it_lives<T>(
    socket: &Path,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut answer = std::pin::pin!(answer);
    loop {
        match tokio::time::timeout(PATIENCE, answer.as_mut()).await {
            Ok(answer) => return answer,
            Err(_) => match Box::pin(is_alive(socket)).await {
                // The supervisor has gone, or a successor comes; the answer itself will tell.
                Ok(()) | Err(Error::NotRunning(_) | Error::Broken(_)) => {}
                Err(error) => return Err(error),
            },
        }
    }
}

/// Waits for an answer that a healthy supervisor gives at once.
async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(Error::Silent(PATIENCE)))
}

async fn is_alive(socket: &Path) -> Result<(), Error> {
    let asked = async {
        let mut client = Client::connect(socket).await?;
        client.send(Method::GET, "/v1/pool", Bytes::new()).await.map(drop)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(Error::Silent(PATIENCE * 2)))
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Error> {
    if !response.status().is_success() {
        return Err(denied(response).await);
    }
    // A long answer may take its time while more of it keeps coming.
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    while let Some(frame) = in_time(async { body.frame().await.transpose().map_err(broken) }).await? {
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::Unreadable(error.to_string()))
}

async fn denied(response: Response<Incoming>) -> Error {
    let status = response.status();
    match response.into_body().collect().await {
        Ok(body) => match serde_json::from_slice::<ErrorBody>(&body.to_bytes()) {
            Ok(ErrorBody { error, faults }) if !faults.is_empty() => Error::Faulty(error, faults),
            Ok(body) => Error::Denied(body.error),
            Err(_) => Error::Denied(Denial {
                code: DenialCode::Internal,
                reason: format!("the supervisor answered {status}"),
                hint: None,
            }),
        },
        Err(error) => broken(error),
    }
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEvent {
    /// The event's `event:` field; `message` where it has none.
    pub name: String,
    /// The event's `data:` fields, joined by newlines.
    pub data: String,
}

/// The server-sent events of one answer, as they come.
pub struct EventStream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventStream {
    /// The next event; `None` when the supervisor has ended the stream.
    pub async fn next(&mut self) -> Result<Option<ServerEvent>, Error> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(&String::from_utf8_lossy(&block)) {
                    return Ok(Some(event));
                }
                continue;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                // The supervisor is gone; for a follower that is the end of the stream.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

/// Reads one block of the stream. `None` for a comment, which only keeps the connection alive.
fn parse(block: &str) -> Option<ServerEvent> {
    let field = |line: &str, name: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(rest.strip_prefix(' ').unwrap_or(rest).to_owned())
    };
    let name = block.lines().find_map(|line| field(line, "event"));
    let data: Vec<String> = block.lines().filter_map(|line| field(line, "data")).collect();
    (!data.is_empty())
        .then(|| ServerEvent { name: name.unwrap_or_else(|| "message".to_owned()), data: data.join("\n") })
}

/// Percent-encodes a value for a query or a path.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_the_standard_says() {
        let event = parse("event: line\ndata: a\ndata: b\nid: 3\n\n").unwrap();
        assert_eq!(event, ServerEvent { name: "line".into(), data: "a\nb".into() });
        assert_eq!(parse(": keep-alive\n\n"), None);
    }

    #[test]
    fn what_has_a_meaning_in_a_path_is_encoded() {
        assert_eq!(encode("../x?&#%\n"), "..%2Fx%3F%26%23%25%0A");
    }
}
