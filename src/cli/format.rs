//! Words, numbers and tables for people to read. It makes text; it prints nothing.

use std::borrow::Cow;
use std::io::IsTerminal;

use unicode_width::UnicodeWidthStr;

/// Whether colours may be used on standard output.
pub(super) fn colour_on_stdout() -> bool {
    allowed() && std::io::stdout().is_terminal()
}

/// Whether colours may be used on standard error.
pub(super) fn colour_on_stderr() -> bool {
    allowed() && std::io::stderr().is_terminal()
}

/// `NO_COLOR` and `CI` ask for plain text.
fn allowed() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && !set("CI") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `error`, red where that is allowed.
pub(super) fn error_word() -> &'static str {
    if colour_on_stderr() { "\x1b[1;31merror\x1b[0m" } else { "error" }
}

/// `warning`, yellow where that is allowed.
pub(super) fn warning_word() -> &'static str {
    if colour_on_stderr() { "\x1b[1;33mwarning\x1b[0m" } else { "warning" }
}

/// The colour of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tint {
    None,
    Good,
    Bad,
    Warn,
    Faint,
}

impl Tint {
    /// The text in this colour, or as it is without `colour`.
    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            _ if !colour => return text.to_owned(),
            Tint::None => return text.to_owned(),
            Tint::Good => "32",
            Tint::Bad => "31",
            Tint::Warn => "33",
            Tint::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A table whose last column is cut short when the terminal is narrow.
pub(super) struct Table {
    header: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<(String, Tint)>>,
}

impl Table {
    /// A table with these columns; those that begin with `>` are right-aligned.
    pub(super) fn new(columns: &[&'static str]) -> Table {
        Table {
            header: columns.iter().map(|c| c.trim_start_matches('>')).collect(),
            right: columns.iter().map(|c| c.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: Vec<(String, Tint)>) {
        let plain = |(cell, tint): (String, Tint)| (plain(&cell).into_owned(), tint);
        self.rows.push(cells.into_iter().map(plain).collect());
    }

    /// The whole table, without a newline at its end. `width` is that of the terminal, if there is one.
    pub(super) fn render(&self, width: Option<usize>, colour: bool) -> String {
        let columns = self.header.len();
        let mut widths: Vec<usize> = self.header.iter().map(|h| h.width()).collect();
        for row in &self.rows {
            for (at, (cell, _)) in row.iter().enumerate() {
                widths[at] = widths[at].max(cell.width());
            }
        }
        let before: usize = widths[..columns - 1].iter().map(|w| w + 2).sum();
        let last = width.map_or(usize::MAX, |w| w.saturating_sub(before).max(4));
        let line = |cells: Vec<(&str, Tint)>| {
            let mut line = String::new();
            for (at, (cell, tint)) in cells.into_iter().enumerate() {
                let cell = if at + 1 == columns { shorten(cell, last) } else { cell.to_owned() };
                let pad = " ".repeat(widths[at].saturating_sub(cell.width()));
                let painted = tint.paint(&cell, colour);
                match (self.right[at], at + 1 == columns) {
                    (true, _) => line.push_str(&format!("{pad}{painted}")),
                    (false, true) => line.push_str(&painted),
                    (false, false) => line.push_str(&format!("{painted}{pad}")),
                }
                if at + 1 < columns {
                    line.push_str("  ");
                }
            }
            line.trim_end().to_owned()
        };
        let mut lines = vec![line(self.header.iter().map(|h| (*h, Tint::Faint)).collect())];
        for row in &self.rows {
            lines.push(line(row.iter().map(|(cell, tint)| (cell.as_str(), *tint)).collect()));
        }
        lines.join("\n")
    }
}

/// Makes foreign text fit on one line and harmless to a terminal: control characters are escaped as
/// Rust writes them.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    Cow::Owned(text.chars().map(shown).collect())
}

/// The text, cut and marked with an ellipsis where it is wider than allowed.
pub(super) fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        if kept.width() + 2 > width {
            break;
        }
        kept.push(c);
    }
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_stays_on_its_line_and_changes_no_terminal() {
        assert_eq!(plain("sleep 3 # \u{1b}]0;evil\u{7}\n\tü"), "sleep 3 # \\u{1b}]0;evil\\u{7}\\n\\tü");
        let mut table = Table::new(&["command"]);
        table.row(vec![("a\nb".to_owned(), Tint::None)]);
        assert_eq!(table.render(None, false).lines().count(), 2);
    }

    #[test]
    fn a_table_never_wraps() {
        let mut table = Table::new(&["NAME", ">PID", "WHY"]);
        table.row(vec![
            ("web".into(), Tint::None),
            ("7".into(), Tint::None),
            ("waiting for everything under the sun".into(), Tint::None),
        ]);
        let text = table.render(Some(24), false);
        assert_eq!(text, "NAME  PID  WHY\nweb     7  waiting for …");
        assert!(text.lines().all(|l| l.width() <= 24));
    }
}
