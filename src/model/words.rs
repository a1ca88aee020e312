//! The words of a manifest that stand for the variants of an enum.

/// Gives an enum the word that each of its variants has in manifests and in everything that is
/// printed: `word`, `WORDS`, `NAMES` and `Display` follow from one list.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every variant with its word, in the order of their declaration.
            pub const WORDS: &'static [(&'static str, $type)] = &[$(($word, $type::$variant)),+];
            /// The words alone, in the order of their declaration.
            pub const NAMES: &'static [&'static str] = &[$($word),+];

            /// The word that a manifest uses for this.
            pub const fn word(self) -> &'static str {
                match self {
                    $($type::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

pub(crate) use words;
