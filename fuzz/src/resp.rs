//! What clients send to the RESP port.

use firn_server::resp::glob;
use firn_server::resp::number::{Float, Parsed};
use firn_server::resp::parse::{Found, Parser};
use firn_server::resp::{dump, parse};

const MAX_BULK: usize = 1_000;

/// The requests in a stream and how it ends, when it arrives in pieces of `sizes`, again and again.
fn requests(data: &[u8], sizes: &[usize]) -> (Vec<Vec<Vec<u8>>>, Option<String>) {
    let mut parser = Parser::new(MAX_BULK, 20_000);
    let (mut buffer, mut found, mut rest) = (Vec::new(), Vec::new(), data);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at((*size).clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
        rest = behind;
        loop {
            match parser.next(&buffer) {
                Ok(Found::Request) => {
                    let args = parser.args(&buffer);
                    assert!(!args.is_empty());
                    found.push(args.iter().map(<[u8]>::to_vec).collect());
                }
                Ok(Found::Incomplete) => break,
                Err(error) => return (found, Some(error.to_string())),
            }
        }
        assert!(parser.lacks(&buffer) <= MAX_BULK + 2);
        buffer.drain(..parser.consumed());
        parser.removed();
    }
    (found, None)
}

/// The bytes of a connection. However they are cut, they are the same requests and the same error.
/// What is sent as a pattern, a number or a dumped value is taken for one.
pub fn resp(data: &[u8]) {
    let whole = requests(data, &[data.len().max(1)]);
    assert_eq!(requests(data, &[1]), whole);
    let sizes: Vec<usize> = data
        .iter()
        .take(8)
        .map(|byte| usize::from(byte % 32))
        .collect();
    if !sizes.is_empty() {
        assert_eq!(requests(data, &sizes), whole);
    }
    for request in &whole.0 {
        for arg in request {
            let (prefix, _) = glob::literal_prefix(arg);
            assert!(!glob::matches(arg, data) || data.starts_with(&prefix));
            if let Some(value) = parse::integer(arg) {
                assert_eq!(value.to_string().as_bytes(), arg);
            }
            if let Some(Parsed::Finite(float)) = Parsed::read(arg) {
                let _: String = Float::print(float);
            }
            if let Ok(value) = dump::restore(arg, MAX_BULK) {
                assert_eq!(dump::restore(&dump::dump(&value), MAX_BULK), Ok(value));
            }
        }
    }
}
