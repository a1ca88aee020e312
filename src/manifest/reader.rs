//! Reads a TOML table key by key, and collects every fault instead of stopping at the first.
//!
//! The keys themselves are named in `decode`.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Source};
use super::size::size;
use crate::model::nearest::nearest;

/// A value, with the bytes of the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// Collects the faults of one text.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) source: Arc<Source>,
    pub(super) faults: Vec<Fault>,
}

impl Collector {
    pub(super) fn new(source: Arc<Source>) -> Collector {
        Collector { source, faults: Vec::new() }
    }

    /// Notes a fault.
    pub(super) fn fault(&mut self, span: Range<usize>, message: impl Into<String>, label: impl Into<String>) {
        self.push(span, message.into(), label.into(), None);
    }

    /// Notes a fault, with a hint that would help.
    pub(super) fn fault_with(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(span, message.into(), label.into(), Some(hint.into()));
    }

    fn push(&mut self, span: Range<usize>, message: String, label: String, hint: Option<String>) {
        self.faults.push(Fault { source: Arc::clone(&self.source), span, message, label, also: None, hint });
    }

    /// Notes that a value has the wrong type.
    pub(super) fn wrong_type(&mut self, what: &str, want: &str, value: &Spanned<DeValue<'_>>) {
        let is = kind_of(value.get_ref());
        let hint = match want {
            want if want.starts_with("a string") => "write it in quotes: \"...\"",
            want if want.starts_with("a whole number") => "write it without quotes: 2",
            want if want.starts_with("a number") => "write it without quotes: 1.5",
            want if want.starts_with("true") => "write true or false, without quotes",
            want if want.starts_with("a list") => "write a list: [\"...\", \"...\"]",
            _ => "\"regrow init\" writes an example",
        };
        self.fault_with(
            value.span(),
            format!("{what} must be {want}, not {is}"),
            format!("this is {is}"),
            hint,
        );
    }
}

/// The type of a value, in words for people.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// One table that is read key by key. A key that was not read in the end is unknown.
pub(super) struct Reader<'a, 'i> {
    table: &'a DeTable<'i>,
    /// The table's name in messages, such as `[service.web]`.
    name: String,
    asked: HashSet<&'static str>,
    order: Vec<&'static str>,
}

impl<'a, 'i> Reader<'a, 'i> {
    pub(super) fn new(table: &'a DeTable<'i>, name: impl Into<String>) -> Reader<'a, 'i> {
        Reader { table, name: name.into(), asked: HashSet::new(), order: Vec::new() }
    }

    /// The value of a key; `None` where the table does not have it.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        if self.asked.insert(key) {
            self.order.push(key);
        }
        self.table.get(key)
    }

    /// The bytes of the key itself.
    pub(super) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(k, _)| k.span())
    }

    /// Makes a fault of every key that was not read.
    pub(super) fn finish(self, collector: &mut Collector) {
        for (key, _) in self.table {
            let text = key.get_ref().as_ref();
            if self.asked.contains(text) {
                continue;
            }
            let message = format!("unknown key {text:?} in {}", self.name);
            match nearest(text, self.order.iter().copied()) {
                Some(near) => collector.fault_with(
                    key.span(),
                    message,
                    "no such key",
                    format!("did you mean {near:?}?"),
                ),
                None => collector.fault_with(
                    key.span(),
                    message,
                    "no such key",
                    format!("known here: {}", self.order.join(", ")),
                ),
            }
        }
    }

    pub(super) fn string(&mut self, key: &'static str, collector: &mut Collector) -> Option<At<String>> {
        let value = self.get(key)?;
        string(key, value, collector)
    }

    pub(super) fn boolean(&mut self, key: &'static str, collector: &mut Collector) -> Option<bool> {
        let value = self.get(key)?;
        if let DeValue::Boolean(b) = value.get_ref() {
            return Some(*b);
        }
        collector.wrong_type(&format!("{key:?}"), "true or false", value);
        None
    }

    /// Reads a whole number within bounds.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u32>,
        collector: &mut Collector,
    ) -> Option<At<u32>> {
        let value = self.get(key)?;
        let DeValue::Integer(number) = value.get_ref() else {
            collector.wrong_type(&format!("{key:?}"), "a whole number", value);
            return None;
        };
        let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok();
        match parsed.and_then(|n| u32::try_from(n).ok()).filter(|n| bounds.contains(n)) {
            Some(n) => Some(At { value: n, span: value.span() }),
            None => {
                let limits = format!("{} to {}", bounds.start(), bounds.end());
                collector.fault_with(
                    value.span(),
                    format!("{key:?} must be a whole number from {limits}"),
                    "out of bounds",
                    format!("the least is {}", bounds.start()),
                );
                None
            }
        }
    }

    pub(super) fn float(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<f64>,
        collector: &mut Collector,
    ) -> Option<f64> {
        let value = self.get(key)?;
        let parsed = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().replace('_', "").parse::<f64>().ok(),
            _ => {
                collector.wrong_type(&format!("{key:?}"), "a number", value);
                return None;
            }
        };
        let number = parsed.filter(|n| bounds.contains(n));
        if number.is_none() {
            let message = format!("{key:?} must be a number from {} to {}", bounds.start(), bounds.end());
            collector.fault_with(
                value.span(),
                message,
                "out of bounds",
                format!("the least is {}", bounds.start()),
            );
        }
        number
    }

    pub(super) fn duration(&mut self, key: &'static str, collector: &mut Collector) -> Option<Duration> {
        let value = self.get(key)?;
        duration(key, value, collector)
    }

    /// Reads a number of bytes, with or without a unit.
    pub(super) fn size(&mut self, key: &'static str, collector: &mut Collector) -> Option<u64> {
        let value = self.get(key)?;
        let text = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().replace('_', ""),
            DeValue::String(_) => string(key, value, collector)?.value,
            _ => {
                collector.wrong_type(&format!("{key:?}"), "a size such as \"64KiB\"", value);
                return None;
            }
        };
        let size = size(&text);
        if size.is_none() {
            let hint = "write it as \"64KiB\", \"100MiB\" or a number of bytes";
            collector.fault_with(value.span(), format!("{key:?} is no size"), "can't read this", hint);
        }
        size
    }

    /// Reads a list of strings.
    pub(super) fn strings(
        &mut self,
        key: &'static str,
        collector: &mut Collector,
    ) -> Option<Vec<At<String>>> {
        let value = self.get(key)?;
        strings(key, value, collector)
    }

    /// Reads one of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
        collector: &mut Collector,
    ) -> Option<T> {
        let value = self.get(key)?;
        choice(key, value, choices, collector)
    }
}

pub(super) fn string(
    what: &str,
    value: &Spanned<DeValue<'_>>,
    collector: &mut Collector,
) -> Option<At<String>> {
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => {
            collector.fault(value.span(), format!("{what:?} contains a NUL character"), "NUL in here");
            None
        }
        DeValue::String(text) => Some(At { value: text.to_string(), span: value.span() }),
        _ => {
            collector.wrong_type(&format!("{what:?}"), "a string", value);
            None
        }
    }
}

pub(super) fn strings(
    what: &str,
    value: &Spanned<DeValue<'_>>,
    collector: &mut Collector,
) -> Option<Vec<At<String>>> {
    let DeValue::Array(list) = value.get_ref() else {
        collector.wrong_type(&format!("{what:?}"), "a list of strings", value);
        return None;
    };
    let mut found = Vec::with_capacity(list.len());
    for item in list.iter() {
        let DeValue::String(_) = item.get_ref() else {
            collector.wrong_type(&format!("each entry of {what:?}"), "a string", item);
            continue;
        };
        found.extend(string(what, item, collector));
    }
    Some(found)
}

pub(super) fn choice<T: Copy>(
    what: &str,
    value: &Spanned<DeValue<'_>>,
    choices: &[(&'static str, T)],
    collector: &mut Collector,
) -> Option<T> {
    let text = string(what, value, collector)?;
    if let Some((_, found)) = choices.iter().find(|(word, _)| *word == text.value) {
        return Some(*found);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let hint = match nearest(&text.value, words.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("one of {}", words.join(", ")),
    };
    collector.fault_with(text.span, format!("{what:?} can't be {:?}", text.value), "unknown", hint);
    None
}

pub(super) fn duration(
    what: &str,
    value: &Spanned<DeValue<'_>>,
    collector: &mut Collector,
) -> Option<Duration> {
    if let DeValue::Integer(number) = value.get_ref() {
        let hint = format!("write \"{}s\" for seconds", number.as_str());
        collector.fault_with(value.span(), format!("{what:?} needs a unit"), "how long is that?", hint);
        return None;
    }
    let text = string(what, value, collector)?;
    match humantime::parse_duration(&text.value) {
        Ok(duration) if duration <= LONGEST => Some(duration),
        Ok(_) => {
            collector.fault(text.span, format!("{what:?} is longer than ten years"), "too long");
            None
        }
        Err(error) => {
            collector.fault_with(
                text.span,
                format!("{what:?} is no duration: {error}"),
                "can't read this",
                "write it as \"250ms\", \"10s\" or \"1m 30s\"",
            );
            None
        }
    }
}

/// The longest duration. A longer one could overflow a clock that it is added to.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
