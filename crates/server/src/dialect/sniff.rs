//! The media type of a value, guessed from its first bytes after the WHATWG's "MIME Sniffing", as
//! servers do that know nothing about a body.

/// Bytes that are looked at.
const LOOK: usize = 512;

/// Beginnings with an exact match.
const EXACT: &[(&[u8], &str)] = &[
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"\x00\x00\x02\x00", "image/x-icon"),
    (b"BM", "image/bmp"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"ID3", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"MThd\x00\x00\x00\x06", "audio/midi"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"\x00\x01\x00\x00", "font/ttf"),
    (b"OTTO", "font/otf"),
    (b"ttcf", "font/collection"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"Rar!\x1a\x07\x00", "application/x-rar-compressed"),
    (b"Rar!\x1a\x07\x01\x00", "application/x-rar-compressed"),
    (b"\x00asm", "application/wasm"),
];

/// Containers: four bytes, a length, then what is inside.
const CONTAINERS: &[(&[u8], &[u8], &str)] = &[
    (b"RIFF", b"WEBPVP", "image/webp"),
    (b"FORM", b"AIFF", "audio/aiff"),
    (b"RIFF", b"AVI ", "video/avi"),
    (b"RIFF", b"WAVE", "audio/wave"),
];

const HTML: &[&[u8]] = &[
    b"<!DOCTYPE HTML",
    b"<HTML",
    b"<HEAD",
    b"<SCRIPT",
    b"<IFRAME",
    b"<H1",
    b"<DIV",
    b"<FONT",
    b"<TABLE",
    b"<A",
    b"<STYLE",
    b"<TITLE",
    b"<B",
    b"<BODY",
    b"<BR",
    b"<P",
    b"<!--",
];

/// The media type of a body that begins like this.
pub(crate) fn media_type(bytes: &[u8]) -> &'static str {
    let bytes = &bytes[..bytes.len().min(LOOK)];
    let blank = |b: &u8| matches!(b, b'\t' | b'\n' | b'\x0c' | b'\r' | b' ');
    let start = bytes.iter().position(|b| !blank(b)).unwrap_or(bytes.len());
    let text = &bytes[start..];
    let tag = |tag: &&[u8]| {
        text.get(..tag.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(tag))
            && matches!(text.get(tag.len()), Some(b' ' | b'>'))
    };
    if HTML.iter().any(tag) {
        return "text/html; charset=utf-8";
    }
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    for (mark, kind) in [
        (&b"\xfe\xff"[..], "text/plain; charset=utf-16be"),
        (b"\xff\xfe", "text/plain; charset=utf-16le"),
    ] {
        // A mark alone is not text yet.
        if bytes.len() >= 4 && bytes.starts_with(mark) {
            return kind;
        }
    }
    if bytes.len() >= 4 && bytes.starts_with(b"\xef\xbb\xbf") {
        return "text/plain; charset=utf-8";
    }
    if let Some((_, kind)) = EXACT.iter().find(|(head, _)| bytes.starts_with(head)) {
        return kind;
    }
    for (head, inside, kind) in CONTAINERS {
        if bytes.starts_with(head) && bytes.get(8..).is_some_and(|b| b.starts_with(inside)) {
            return kind;
        }
    }
    if is_mp4(bytes) {
        return "video/mp4";
    }
    if bytes.len() > 34 && bytes[34..].starts_with(b"LP") && bytes[..34].iter().all(|&b| b == 0) {
        return "application/vnd.ms-fontobject";
    }
    let binary = |b: &u8| matches!(b, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if text.iter().any(binary) {
        return "application/octet-stream";
    }
    "text/plain; charset=utf-8"
}

fn is_mp4(bytes: &[u8]) -> bool {
    let Some(&[a, b, c, d]) = bytes.first_chunk() else {
        return false;
    };
    let size = [a, b, c, d]
        .iter()
        .fold(0_usize, |size, &byte| size << 8 | usize::from(byte));
    if bytes.len() < 12 || bytes.len() < size || size % 4 != 0 || &bytes[4..8] != b"ftyp" {
        return false;
    }
    // Brands of four bytes; the second one is a version.
    (8..size.min(bytes.len()))
        .step_by(4)
        .filter(|&at| at != 12)
        .any(|at| bytes[at..].starts_with(b"mp4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_values_look_like() {
        for (bytes, kind) in [
            (&b"somevalue"[..], "text/plain; charset=utf-8"),
            (b"{\"a\":1}", "text/plain; charset=utf-8"),
            (b"  <html><body>x</body></html>", "text/html; charset=utf-8"),
            (b"<a", "text/plain; charset=utf-8"),
            (b"<?xml version=\"1.0\"?>", "text/xml; charset=utf-8"),
            (b"\xff\xfe\x00\x01", "text/plain; charset=utf-16le"),
            (b"\xff\xfe", "text/plain; charset=utf-8"),
            (b"\x89PNG\r\n\x1a\nrest", "image/png"),
            (b"RIFF....WEBPVP8 ", "image/webp"),
            (
                b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
                "video/mp4",
            ),
            (b"a\x00b", "application/octet-stream"),
            (b"", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(media_type(bytes), kind, "{}", bytes.escape_ascii());
        }
    }
}
