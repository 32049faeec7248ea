//! Sizes as people write them: `512MiB`, `64KB`; a plain number is bytes.

const UNITS: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// Reads a size in bytes. Units may be in any case; `M` alone is `MiB`.
///
/// # Errors
/// A sentence that names the text and the forms that are understood.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write 64KiB, 512MiB, 2GiB or a number of bytes");
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| c != '.' && !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let unit = if unit.is_empty() { "B" } else { unit };
    let (_, bytes) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .ok_or_else(bad)?;
    scaled(number, *bytes).ok_or_else(bad)
}

/// Prints with the largest binary unit that leaves a whole number, so that [`parse`] gives it back.
pub fn print(bytes: u64) -> String {
    let unit = UNITS[..4]
        .iter()
        .find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// `number` (digits with at most one point) times `unit`, exactly, or `None`.
pub(crate) fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let read = |digits: &str| match digits {
        "" => Some(0),
        _ if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse::<u64>().ok(),
        _ => None,
    };
    let base = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = read(fraction)?.checked_mul(unit)?;
    if !part.is_multiple_of(base) {
        return None;
    }
    read(whole)?.checked_mul(unit)?.checked_add(part / base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_people_write() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("64k", 64 << 10),
            ("1.5GiB", 3 << 29),
            ("10MB", 10_000_000),
            ("17", 17),
            ("17B", 17),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1XB", "0.3B", "1.2.3K", "99999999TiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["512MiB", "3GiB", "64KiB", "17B", "0B"] {
            assert_eq!(print(parse(text).unwrap()), text);
        }
    }
}
