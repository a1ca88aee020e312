//! Env files: one `NAME=value` on each line, where `export`, quotes as in a shell and `#` comments
//! are allowed.
//!
//! Only text is read here. Files are opened, and variables expanded, in `load`.

use super::interpolate::is_variable;

/// A line that can't be read: its bytes in the text, and the reason.
pub(super) type Bad = (std::ops::Range<usize>, String);

/// Reads all assignments, in order. A value in quotes may span several lines. In double quotes
/// `\n`, `\t`, `\r`, `\"` and `\\` are escapes; single quotes have none.
pub(super) fn parse(text: &str) -> (Vec<(String, String)>, Vec<Bad>) {
    let mut found = Vec::new();
    let mut bad = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
        let line = text[at..end].trim();
        let start = at;
        at = end + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let body = line.strip_prefix("export ").map_or(line, str::trim_start);
        let Some((name, value)) = body.split_once('=') else {
            bad.push((start..end, "a line of an env file must have the form NAME=value".to_owned()));
            continue;
        };
        let name = name.trim_end();
        if !is_variable(name) {
            bad.push((start..end, format!("{name:?} is not a valid variable name")));
            continue;
        }
        let value = value.trim_start();
        let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            let plain = value.find(" #").map_or(value, |n| &value[..n]);
            found.push((name.to_owned(), plain.trim_end().to_owned()));
            continue;
        };
        // The value is read from its place in the whole text, so that it can go on past the line.
        let from = value.as_ptr() as usize - text.as_ptr() as usize + 1;
        match quoted(&text[from..], quote) {
            Some((value, length)) => {
                found.push((name.to_owned(), value));
                let after = from + length + 1;
                if after > at {
                    at = text[after..].find('\n').map_or(text.len(), |n| after + n + 1);
                }
            }
            None => {
                bad.push((start..end, format!("the quote {quote} is never closed")));
            }
        }
    }
    (found, bad)
}

/// The value up to the closing quote, and the number of bytes before that quote.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some((value, at));
        }
        if c == '\\' && quote == '"' {
            match chars.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                other => value.push(other),
            }
        } else {
            value.push(c);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_shells_and_dotenv_write() {
        let text = "# c\nA=1\nexport B = two # note\nC='x # y'\nD=\"a\\nb\"\nE=\nF=\"over\nlines\"\nG=last";
        let (found, bad) = parse(text);
        let words: Vec<String> = found.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
        assert_eq!(
            words,
            [
                r#"A="1""#,
                r#"B="two""#,
                r#"C="x # y""#,
                r#"D="a\nb""#,
                r#"E="""#,
                r#"F="over\nlines""#,
                r#"G="last""#
            ]
        );
        assert!(bad.is_empty());
    }

    #[test]
    fn names_the_lines_it_can_not_read() {
        let (found, bad) = parse("OK=1\nnonsense\n1X=2\nQ='open\nZ=3");
        assert_eq!(found.len(), 2, "{found:?}");
        let at: Vec<usize> = bad.iter().map(|(span, _)| span.start).collect();
        assert_eq!(at, [5, 14, 19]);
    }
}
