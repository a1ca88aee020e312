//! Reads a TOML table key by key, and collects every fault instead of stopping at the first.
//!
//! The keys that a table may have, and the bounds of their values, come from the table of keys
//! ([`crate::model::keys`]); what becomes of them is `decode`'s to say.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Source};
use super::size::size;
use crate::model::keys::{Form, Section};
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
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
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
    /// The keys that the table may have.
    section: &'static Section,
    asked: HashSet<&'static str>,
}

impl<'a, 'i> Reader<'a, 'i> {
    /// A reader of a table that has its section's name in messages.
    pub(super) fn new(table: &'a DeTable<'i>, section: &'static Section) -> Reader<'a, 'i> {
        Reader::named(table, section, section.title)
    }

    /// A reader of a table that has this name in messages.
    pub(super) fn named(
        table: &'a DeTable<'i>,
        section: &'static Section,
        name: impl Into<String>,
    ) -> Reader<'a, 'i> {
        Reader { table, name: name.into(), section, asked: HashSet::new() }
    }

    /// The value of a key; `None` where the table does not have it.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        debug_assert!(self.section.key(key).is_some(), "{key} is not in the table of keys");
        self.asked.insert(key);
        self.table.get(key)
    }

    /// The values that a key takes.
    fn form(&self, key: &str) -> Option<&'static Form> {
        self.section.key(key).map(|key| &key.form)
    }

    /// The keys of the table within this one that a key takes.
    ///
    /// # Panics
    /// Where the key takes no table: the table of keys is part of the program.
    pub(super) fn section(&self, key: &str) -> &'static Section {
        match self.form(key).and_then(Form::section) {
            Some(section) => section,
            None => panic!("{key} takes no table"),
        }
    }

    /// The keys of which exactly one is needed.
    pub(super) fn one_of(&self) -> &'static [&'static str] {
        self.section.one_of
    }

    /// The bytes of the key itself.
    pub(super) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(k, _)| k.span())
    }

    /// Makes a fault of every key that is unknown.
    pub(super) fn finish(self, collector: &mut Collector) {
        debug_assert!(
            self.section.names().all(|key| self.asked.contains(key)),
            "{}: a key of the table is not read",
            self.name
        );
        for (key, _) in self.table {
            let text = key.get_ref().as_ref();
            if self.section.key(text).is_some() {
                continue;
            }
            let message = format!("unknown key {text:?} in {}", self.name);
            let hint = match nearest(text, self.section.names()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("the known keys are {}", self.section.names().collect::<Vec<_>>().join(", ")),
            };
            collector.fault_with(key.span(), message, "no such key", hint);
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

    /// Reads a whole number within the bounds of its key.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        collector: &mut Collector,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        let Some(Form::Integer { least, most } | Form::Short { plain: Form::Integer { least, most }, .. }) =
            self.form(key)
        else {
            panic!("{key} takes no whole number");
        };
        let DeValue::Integer(number) = value.get_ref() else {
            collector.wrong_type(&format!("{key:?}"), "a whole number", value);
            return None;
        };
        let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let within = parsed.filter(|n| (least..=most).contains(&n)).and_then(|n| T::try_from(n).ok());
        if within.is_none() {
            collector.fault_with(
                value.span(),
                format!("{key:?} must be a whole number from {least} to {most}"),
                "out of bounds",
                format!("write a whole number from {least} to {most}"),
            );
        }
        within.map(|n| At { value: n, span: value.span() })
    }

    /// Reads a number within the bounds of its key.
    pub(super) fn float(&mut self, key: &'static str, collector: &mut Collector) -> Option<f64> {
        let value = self.get(key)?;
        let Some(Form::Number { least, most }) = self.form(key) else {
            panic!("{key} takes no number");
        };
        let parsed = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().replace('_', "").parse::<f64>().ok(),
            _ => {
                collector.wrong_type(&format!("{key:?}"), "a number", value);
                return None;
            }
        };
        let number = parsed.filter(|n| (least..=most).contains(&n));
        if number.is_none() {
            let message = format!("{key:?} must be a number from {least} to {most}");
            let hint = format!("write a number from {least} to {most}");
            collector.fault_with(value.span(), message, "out of bounds", hint);
        }
        number
    }

    /// Reads a duration that is not shorter than its key allows.
    pub(super) fn duration(&mut self, key: &'static str, collector: &mut Collector) -> Option<Duration> {
        let value = self.get(key)?;
        let Some(Form::Duration(least)) = self.form(key) else {
            panic!("{key} takes no duration");
        };
        let read = duration(key, value, collector)?;
        if read >= *least {
            return Some(read);
        }
        let message = match *least < Duration::from_millis(1) {
            true => format!("{key:?} can't be zero"),
            false => format!("{key:?} must be at least {}", humantime::format_duration(*least)),
        };
        collector.fault_with(value.span(), message, "too short", "write a longer one, such as \"250ms\"");
        None
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
            collector.fault_with(value.span(), format!("{key:?} must be a size"), "invalid value", hint);
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
            collector.fault(
                value.span(),
                format!("{what:?} contains a NUL character"),
                "NUL character in this string",
            );
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
        None => format!("write one of {}", words.join(", ")),
    };
    collector.fault_with(
        text.span,
        format!("{what:?} can't have the value {:?}", text.value),
        "unknown value",
        hint,
    );
    None
}

pub(super) fn duration(
    what: &str,
    value: &Spanned<DeValue<'_>>,
    collector: &mut Collector,
) -> Option<Duration> {
    if let DeValue::Integer(number) = value.get_ref() {
        let hint = format!("write \"{}s\" for seconds", number.as_str());
        collector.fault_with(value.span(), format!("{what:?} needs a unit"), "no unit", hint);
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
                format!("{what:?} must be a duration: {error}"),
                "invalid value",
                "write it as \"250ms\", \"10s\" or \"1m 30s\"",
            );
            None
        }
    }
}

/// The longest duration. A longer one could overflow a clock that it is added to.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
