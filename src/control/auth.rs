//! What a request from the network must show before it is looked at: the name by which it calls the
//! daemon, the page it comes from, and a valid token.
//!
//! Requests that come too fast are refused here as well. What the caller may do is deliberately not
//! asked here; the handlers ask that.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::{HeaderMap, header};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::connections::Caller;
use super::refused::{Refused, refuse};
use crate::manifest::config::Api;
use crate::model::DenialCode;
use crate::vault::tokens::Tokens;

/// The number of refused requests without a valid token that are written to the audit trail in a
/// second. Requests beyond it are only answered.
const REFUSALS_KEPT: u32 = 10;

/// When more rates than this are remembered, the callers that have been quiet are forgotten.
const REMEMBERED: usize = 10_000;

/// The checks that every request from the network must pass.
pub(super) struct Guard {
    tokens: Arc<Tokens>,
    names: Vec<String>,
    scheme: &'static str,
    requests: u32,
    /// The request rate of each token, and of each address that shows no valid one.
    rates: DefaultKeyedRateLimiter<String>,
    refusals: DefaultDirectRateLimiter,
}

impl Guard {
    pub(super) fn new(api: &Api, listening: SocketAddr, tokens: Tokens) -> Guard {
        let number = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(number(api.requests));
        let burst = number(api.requests.saturating_mul(2));
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
        names.push(match listening.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        });
        names.extend(api.hosts.iter().map(|name| name.to_ascii_lowercase()));
        Guard {
            tokens: Arc::new(tokens),
            names,
            scheme: if api.tls.is_some() { "https" } else { "http" },
            requests: api.requests,
            rates: RateLimiter::keyed(quota.allow_burst(burst)),
            refusals: RateLimiter::direct(Quota::per_second(number(REFUSALS_KEPT))),
        }
    }

    /// Finds out whose request it is, or refuses it.
    ///
    /// Where there is no valid token, calls `unknown` with the address and with what was shown. Of many
    /// such requests, only the first [`REFUSALS_KEPT`] in a second are passed on.
    pub(super) fn identify(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        unknown: impl FnOnce(&str, &str),
    ) -> Result<Caller, Refused> {
        let host = self.host(headers)?;
        self.origin(headers, host)?;
        let found = match bearer(headers) {
            Some(shown) => self.tokens.find(shown, SystemTime::now()).map_err(|error| {
                tracing::error!(%error, "the tokens can't be read");
                refuse(DenialCode::Internal, "the tokens can't be read", None)
            })?,
            None => None,
        };
        let Some(token) = found else {
            self.in_rate(format!("address:{from}"))?;
            if self.refusals.check().is_ok() {
                let shown = if bearer(headers).is_some() { "an unknown token" } else { "no token" };
                unknown(&format!("address:{from}"), shown);
            }
            let hint = Some("send \"Authorization: Bearer TOKEN\"; \"regrow token create\" makes one");
            return Err(refuse(DenialCode::Unauthorized, "a valid token is needed", hint));
        };
        let caller = Caller::by_token(token, &self.tokens);
        self.in_rate(caller.who.to_string())?;
        Ok(caller)
    }

    /// Checks the name by which the request calls the daemon. A foreign page whose own name is made to
    /// lead here (DNS rebinding) calls the daemon by that name.
    fn host<'a>(&self, headers: &'a HeaderMap) -> Result<&'a str, Refused> {
        let mut all = headers.get_all(header::HOST).iter();
        let host = match (all.next(), all.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default(),
            _ => "",
        };
        let name = without_port(host).to_ascii_lowercase();
        if self.names.contains(&name) {
            return Ok(host);
        }
        let shown: String = host.chars().take(80).collect();
        let hint = Some("list the host name under \"hosts\" in [api] of the daemon's configuration");
        Err(refuse(DenialCode::Misdirected, format!("{shown:?} is not a host name of this daemon"), hint))
    }

    /// Checks the page that the request comes from, which a browser names. Only pages that this daemon
    /// has served may ask.
    fn origin(&self, headers: &HeaderMap, host: &str) -> Result<(), Refused> {
        for origin in headers.get_all(header::ORIGIN) {
            let own = format!("{}://{host}", self.scheme);
            if !origin.to_str().is_ok_and(|origin| origin.eq_ignore_ascii_case(&own)) {
                return Err(refuse(DenialCode::Forbidden, "cross-origin requests are refused", None));
            }
        }
        Ok(())
    }

    fn in_rate(&self, of: String) -> Result<(), Refused> {
        if self.rates.len() > REMEMBERED {
            self.rates.retain_recent();
        }
        self.rates.check_key(&of).map_err(|_| {
            let reason = format!("more than {} requests a second", self.requests);
            refuse(DenialCode::TooManyRequests, reason, Some("wait a second"))
        })
    }
}

/// The name in a Host header, without its port. Empty where the port is no number.
fn without_port(host: &str) -> &str {
    let end = match host.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(bracket) => bracket + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let is_port =
        |text: &str| text.is_empty() || text.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    if is_port(port) { name } else { "" }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn guard(hosts: &[&str]) -> Guard {
        let listen: SocketAddr = "192.0.2.7:7420".parse().unwrap();
        let api = Api {
            listen,
            hosts: hosts.iter().map(|name| (*name).to_owned()).collect(),
            tls: None,
            max_body: 1 << 20,
            requests: 1,
            connections: 8,
            timeout: Duration::from_secs(30),
        };
        Guard::new(&api, listen, Tokens::at("/nowhere/tokens.json".into()))
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_names_of_ours_are_answered_to() {
        let guard = guard(&["Regrow.Example"]);
        for (host, want) in [
            ("localhost", true),
            ("localhost:7420", true),
            ("LOCALHOST:1", true),
            ("127.0.0.1:7420", true),
            ("[::1]:7420", true),
            ("192.0.2.7:7420", true),
            ("regrow.example", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("localhost@evil.example", false),
            ("localhost:evil", false),
            ("localhost:70000", false),
            ("[::1", false),
            ("[::1]x", false),
            ("", false),
        ] {
            assert_eq!(guard.host(&headers(&[(header::HOST, host)])).is_ok(), want, "{host:?}");
        }
        assert!(guard.host(&headers(&[])).is_err());
        assert!(guard.host(&headers(&[(header::HOST, "localhost"), (header::HOST, "evil")])).is_err());
    }

    #[test]
    fn pages_of_others_are_refused() {
        let guard = guard(&[]);
        for (origin, want) in [
            ("http://localhost:7420", true),
            ("https://localhost:7420", false),
            ("http://localhost", false),
            ("http://evil.example", false),
            ("null", false),
        ] {
            let headers = headers(&[(header::ORIGIN, origin)]);
            assert_eq!(guard.origin(&headers, "localhost:7420").is_ok(), want, "{origin}");
        }
    }

    #[test]
    fn a_token_comes_in_one_header_of_one_form() {
        let shown = |values: &[&str]| {
            let pairs: Vec<_> = values.iter().map(|value| (header::AUTHORIZATION, *value)).collect();
            bearer(&headers(&pairs)).map(str::to_owned)
        };
        assert_eq!(shown(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(shown(&["bearer  abc "]).as_deref(), Some("abc"));
        assert_eq!(shown(&["Basic abc"]), None);
        assert_eq!(shown(&["Bearer a", "Bearer b"]), None);
        assert_eq!(shown(&[]), None);
    }

    #[test]
    fn more_than_the_rate_is_refused_and_others_are_not() {
        let guard = guard(&[]);
        let times = (0..20).filter(|_| guard.in_rate("token:a".to_owned()).is_ok()).count();
        assert!((2..5).contains(&times), "{times}");
        assert!(guard.in_rate("token:b".to_owned()).is_ok());
    }
}
