//! Sizes in bytes, as people write them: with or without a unit.

use serde::Deserialize;

/// A number of bytes, at least one: `512MiB`, `64 KiB`, `1GB`, `7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub(super) struct Size(pub(super) u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;
    fn try_from(written: Written) -> Result<Size, String> {
        let text = match written {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        size(&text).map(Size).ok_or_else(|| format!("{text:?} is not a size (write \"64KiB\" or \"100MiB\")"))
    }
}

pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1_000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("100MiB", Some(100 << 20)),
            ("64 KiB", Some(64 << 10)),
            ("7", Some(7)),
            ("1gb", Some(1_000_000_000)),
            ("0", None),
            ("-1", None),
            ("99999999999GiB", None),
            ("many", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }
}
