//! The query string of a request: its parameters are checked here, and described for the OpenAPI
//! document.

use crate::control::refused::{Handled, refuse};
use crate::model::{DenialCode, State};

/// One query parameter, as it is checked and described.
pub(in crate::control) struct Parameter {
    pub(in crate::control) name: &'static str,
    pub(in crate::control) kind: ParameterKind,
    pub(in crate::control) about: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum ParameterKind {
    /// Any text; the parameter may be given several times.
    Names,
    /// The name of a state; the parameter may be given several times.
    States,
    /// A whole number from 0 to [`LARGEST`].
    Count,
    /// A number of seconds, from 0.
    Seconds,
    /// `true` or `false`.
    Flag,
}

/// The largest number that every JSON client holds exactly.
pub(in crate::control) const LARGEST: u64 = (1 << 53) - 1;

/// A query string that was checked.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(raw: Option<String>, known: &[Parameter]) -> Handled<Query> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in raw.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, "true"));
            let (name, value) = (decode(name), decode(value));
            let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
                let names: Vec<&str> = known.iter().map(|parameter| parameter.name).collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let reason = format!("unknown parameter {name:?}; known: {known}");
                return Err(refuse(DenialCode::Invalid, reason, None));
            };
            let wanted = match parameter.kind {
                ParameterKind::Names => None,
                ParameterKind::States => state(&value).is_none().then_some("a state"),
                ParameterKind::Count => {
                    let fits = value.parse::<u64>().is_ok_and(|number| number <= LARGEST);
                    (!fits).then_some("a non-negative integer")
                }
                ParameterKind::Seconds => {
                    let fits =
                        value.parse::<f64>().is_ok_and(|seconds| seconds.is_finite() && seconds >= 0.0);
                    (!fits).then_some("a non-negative number of seconds")
                }
                ParameterKind::Flag => {
                    (!matches!(value.as_str(), "true" | "false")).then_some("true or false")
                }
            };
            if let Some(wanted) = wanted {
                let reason = format!("{name:?} must be {wanted}, not {value:?}");
                return Err(refuse(DenialCode::Invalid, reason, None));
            }
            let several = matches!(parameter.kind, ParameterKind::Names | ParameterKind::States);
            if !several && pairs.iter().any(|(before, _)| *before == name) {
                return Err(refuse(DenialCode::Invalid, format!("{name:?} is given twice"), None));
            }
            pairs.push((name, value));
        }
        Ok(Query(pairs))
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    /// The states that are asked for; an empty list means all.
    pub(super) fn states(&self) -> Vec<State> {
        self.0.iter().filter(|(n, _)| n == "state").filter_map(|(_, v)| state(v)).collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(n, v)| n == name && v == "true")
    }

    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Handled<Option<T>> {
        let Some((_, value)) = self.0.iter().find(|(n, _)| n == name) else {
            return Ok(None);
        };
        value.parse().map(Some).map_err(|_| {
            refuse(DenialCode::Invalid, format!("{name:?} must be a number, not {value:?}"), None)
        })
    }
}

fn state(word: &str) -> Option<State> {
    State::ALL.into_iter().find(|state| state.to_string() == word)
}

/// Decodes the percent-encoding and the `+` of a query.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let digit = |b: &u8| char::from(*b).to_digit(16);
                match (digit(high), digit(low)) {
                    (Some(high), Some(low)) => {
                        bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                        rest = after;
                    }
                    _ => bytes.push(b'%'),
                }
            }
            (other, _) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Parameter] = &[
        Parameter { name: "service", kind: ParameterKind::Names, about: "" },
        Parameter { name: "state", kind: ParameterKind::States, about: "" },
        Parameter { name: "limit", kind: ParameterKind::Count, about: "" },
        Parameter { name: "since_s", kind: ParameterKind::Seconds, about: "" },
        Parameter { name: "follow", kind: ParameterKind::Flag, about: "" },
    ];

    #[test]
    fn a_query_is_checked_by_what_is_known_of_it() {
        let parsed = |text: &str| Query::parse(Some(text.to_owned()), KNOWN);
        let query = parsed("service=a%2Fb&service=c+d&limit=7&follow&since_s=0.5&state=failed").unwrap();
        assert_eq!(query.all("service"), ["a/b", "c d"]);
        assert_eq!(query.number::<usize>("limit").unwrap(), Some(7));
        assert_eq!(query.states(), [State::Failed]);
        assert!(query.flag("follow") && !parsed("follow=false").unwrap().flag("follow"));
        for text in [
            "what=1",
            "limit=-1",
            "limit=1e3",
            "limit=9007199254740992",
            "limit=1&limit=2",
            "since_s=-1",
            "since_s=NaN",
            "since_s=inf",
            "follow=1",
            "state=dead",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
