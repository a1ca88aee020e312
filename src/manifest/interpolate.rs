//! Variables in texts: `${NAME}`, `${NAME:-default}` and `$$`.
//!
//! Where the value of a variable comes from is the caller's to say.

/// Why a text could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The variable is not set, and has no default.
    Undefined(String),
    /// A `${` has no end, or holds something that can't name a variable, or the text grows too long.
    /// The string says which.
    Malformed(String),
    /// Variables are made of each other; the names lead back to the first.
    Circular(Vec<String>),
}

/// Looks up the value of a variable; `None` where it is not set.
pub(super) type Lookup<'a> = dyn FnMut(&str) -> Result<Option<String>, Trouble> + 'a;

/// Expands a text. A dollar that starts none of these forms stands for itself, so that words of a
/// shell such as `$1` need no care.
pub(super) fn expand(text: &str, lookup: &mut Lookup<'_>) -> Result<String, Trouble> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some(end) = closing(after) else {
                return Err(Trouble::Malformed(format!("\"${{{after}\" has no closing brace")));
            };
            let inside = &after[..end];
            rest = &after[end + 1..];
            let (name, default) = match inside.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (inside, None),
            };
            if !is_variable(name) {
                return Err(Trouble::Malformed(format!("{name:?} is not a valid variable name")));
            }
            // As in a shell, `:-` also stands in for an empty value.
            match (lookup(name)?, default) {
                (Some(value), None) => result.push_str(&value),
                (Some(value), Some(_)) if !value.is_empty() => result.push_str(&value),
                (_, Some(default)) => result.push_str(&expand(default, lookup)?),
                (None, None) => return Err(Trouble::Undefined(name.to_owned())),
            }
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    if result.len() > LONGEST {
        return Err(Trouble::Malformed("the expanded text is longer than 1 MiB".to_owned()));
    }
    Ok(result)
}

/// The most bytes of an expanded text. Variables made of each other could double it with each step.
const LONGEST: usize = 1 << 20;

/// The place of the brace that ends a `${`; nested ones are skipped.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if at > 0 && bytes[at - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Whether a text can name a variable.
pub(super) fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, Trouble> {
        expand(text, &mut |name| {
            Ok(match name {
                "HOME" => Some("/home/ada".to_owned()),
                "EMPTY" => Some(String::new()),
                _ => None,
            })
        })
    }

    #[test]
    fn forms() {
        for (text, want) in [
            ("plain", "plain"),
            ("${HOME}/x", "/home/ada/x"),
            ("${NOPE:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("${NOPE:-}", ""),
            ("${NOPE:-${HOME}/y}", "/home/ada/y"),
            ("$$", "$"),
            ("$${HOME}", "${HOME}"),
            ("$1 $x 5$", "$1 $x 5$"),
        ] {
            assert_eq!(with(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn troubles() {
        assert_eq!(with("${NOPE}"), Err(Trouble::Undefined("NOPE".into())));
        assert!(matches!(with("${HOME"), Err(Trouble::Malformed(_))));
        assert!(matches!(with("${}"), Err(Trouble::Malformed(_))));
        assert!(matches!(with("${a b}"), Err(Trouble::Malformed(_))));
    }
}
