//! Durations as people write them: `30s`, `500ms`, `1.5h`; a plain number is seconds.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Reads a duration with millisecond precision.
///
/// # Errors
/// A sentence that names the text and the forms that are understood.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write 500ms, 30s, 5m, 2h, 7d or seconds");
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| c != '.' && !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let unit = if unit.is_empty() { "s" } else { unit };
    let (_, unit_ms) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(bad)?;
    crate::size::scaled(number, *unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(bad)
}

/// Prints with the largest unit that leaves a whole number, so that [`parse`] gives it back.
pub fn print(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".into();
    }
    let (name, unit) = UNITS
        .iter()
        .find(|(_, unit)| ms.is_multiple_of(*unit))
        .unwrap_or(&("ms", 1));
    format!("{}{name}", ms / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_people_write() {
        for (text, ms) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1.5h", 5_400_000),
            ("7d", 604_800_000),
            ("30", 30_000),
            ("0.25", 250),
            (" 1 s ", 1_000),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        let bad = [
            "",
            "s",
            "-1s",
            "1 year",
            "1e3",
            "1..2s",
            ".",
            "99999999999999999999s",
            "1.23456ms",
        ];
        for text in bad {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["30s", "500ms", "5m", "2h", "7d", "1001ms", "0s"] {
            assert_eq!(print(parse(text).unwrap()), text);
        }
    }
}
