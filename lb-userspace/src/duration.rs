//! Durations as people write them: `500ms`, `2s`, `1m`.

use std::time::Duration;

/// Reads a duration.
///
/// # Errors
/// What a duration looks like.
pub fn parse(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a duration, such as 500ms, 2s or 1m"))?;
    // The API speaks milliseconds; a finer value would not survive the way there and back.
    if duration.subsec_nanos().is_multiple_of(1_000_000) {
        Ok(duration)
    } else {
        Err(format!(
            "`{text}` is finer than a millisecond: use whole milliseconds"
        ))
    }
}
