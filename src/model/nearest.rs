//! "Did you mean": the known word nearest to an unknown one.

/// The candidate that the word was most likely meant to be, if one is near enough.
///
/// ```
/// use regrow::model::nearest::nearest;
/// assert_eq!(nearest("comand", ["command", "kind"]), Some("command"));
/// assert_eq!(nearest("volume", ["command", "kind"]), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long words are no typing slips, and the comparison is quadratic in their length.
    if word.len() > 80 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The hint for an unknown name; `None` when no known name is near enough.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, known).map(|near| format!("did you mean {near:?}?"))
}
