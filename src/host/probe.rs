//! One attempt of a network check. Checks that run a command go through the host, like every
//! process.
//!
//! Deliberately absent: when to check, and what follows from the result.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::decide::probe::{CheckOutcome, one_line};

/// How many bytes of an unwanted answer are shown.
const SHOWN: usize = 300;

/// Checks that a connection to `HOST:PORT` can be made, and closes it.
pub async fn tcp(address: &str, timeout: Duration) -> CheckOutcome {
    match tokio::time::timeout(timeout, connect(address)).await {
        Ok(Ok(_)) => CheckOutcome::Pass,
        Ok(Err(outcome)) => outcome,
        Err(_) => CheckOutcome::Fail(format!("no connection to {address} within {timeout:?}")),
    }
}

/// GETs an `http://` URL. 200 to 399 is a success, as Kubernetes has it; redirects are not
/// followed.
pub async fn http(url: &str, timeout: Duration) -> CheckOutcome {
    match tokio::time::timeout(timeout, get(url)).await {
        Ok(outcome) => outcome,
        Err(_) => CheckOutcome::Fail(format!("no answer from {url} within {timeout:?}")),
    }
}

async fn connect(address: &str) -> Result<TcpStream, CheckOutcome> {
    TcpStream::connect(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused
        | std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::TimedOut
        | std::io::ErrorKind::HostUnreachable
        | std::io::ErrorKind::NetworkUnreachable => CheckOutcome::Fail(format!("{address}: {error}")),
        // A name that does not resolve, or a lack of descriptors, is this process's own trouble.
        _ => CheckOutcome::Unable(format!("{address}: {error}")),
    })
}

async fn get(url: &str) -> CheckOutcome {
    let uri: hyper::Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return CheckOutcome::Unable(format!("{url}: {error}")),
    };
    let Some(authority) = uri.authority() else {
        return CheckOutcome::Unable(format!("{url} names no host"));
    };
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = match connect(&address).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let asked = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = match asked {
        Ok(pair) => pair,
        Err(error) => return CheckOutcome::Fail(format!("{url}: {error}")),
    };
    let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, authority.as_str())
        .header(hyper::header::USER_AGENT, concat!("regrow/", env!("CARGO_PKG_VERSION")))
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return CheckOutcome::Unable(format!("{url}: {error}")),
    };
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = Vec::new();
        if !(200..400).contains(&status.as_u16()) {
            let mut stream = response.into_body();
            while body.len() < SHOWN
                && let Some(Ok(frame)) = stream.frame().await
            {
                body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
        }
        Ok::<_, hyper::Error>((status, body))
    };
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    let answered = tokio::select! {
        answered = &mut answer => answered,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    match answered {
        Ok((status, _)) if (200..400).contains(&status.as_u16()) => CheckOutcome::Pass,
        Ok((status, body)) => {
            let text = one_line(&body[..body.len().min(SHOWN)]);
            let text = if text.is_empty() { text } else { format!(": {text}") };
            CheckOutcome::Fail(format!("{url} answered {status}{text}"))
        }
        Err(error) => CheckOutcome::Fail(format!("{url}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0u8; 1024];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        format!("http://{address}/health")
    }

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn http_is_judged_by_its_status() {
        let fine = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(http(&fine, SOON).await, CheckOutcome::Pass);
        let bad = answering("HTTP/1.1 503 Unavailable\r\ncontent-length: 7\r\n\r\nwarming").await;
        let CheckOutcome::Fail(message) = http(&bad, SOON).await else { panic!("503 is a failure") };
        assert!(message.ends_with("answered 503 Service Unavailable: warming"), "{message}");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let outcome = http(&format!("http://{address}/"), Duration::from_millis(50)).await;
        assert!(matches!(outcome, CheckOutcome::Fail(message) if message.contains("within 50ms")));
    }

    #[tokio::test]
    async fn refused_is_a_failure_and_unknown_is_not() {
        let free = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().to_string()
        };
        assert!(matches!(tcp(&free, SOON).await, CheckOutcome::Fail(_)));
        assert!(matches!(tcp("no.such.host.invalid:80", SOON).await, CheckOutcome::Unable(_)));
    }
}
