//! A RESP client that is nothing but a socket, and understands every type of both protocols.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Verbatim(String),
    Null,
    NullArray,
    Array(Vec<Reply>),
    Map(Vec<Reply>),
    Set(Vec<Reply>),
    Push(Vec<Reply>),
}

pub(crate) fn ok() -> Reply {
    Reply::Simple("OK".into())
}

pub(crate) fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

impl Reply {
    #[track_caller]
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) | Self::Map(items) | Self::Set(items) | Self::Push(items) => items,
            other => panic!("not a list: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Verbatim(text) | Self::Error(text) => text.clone(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("not a text: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            other => panic!("not a number: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn error(&self) -> &str {
        match self {
            Self::Error(text) => text,
            other => panic!("not an error: {other:?}"),
        }
    }
}

/// A connection.
pub(crate) struct Resp {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

pub(crate) fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

impl Resp {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next reply; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Reply> {
        loop {
            if let Some((reply, used)) = parse(&self.buffer) {
                self.buffer.drain(..used);
                return Some(reply);
            }
            let reading = self.stream.read_buf(&mut self.buffer);
            let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
            match read.expect("the server neither answered nor closed") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        self.next().await.expect("the server closed")
    }

    /// Sends words and returns the reply.
    pub(crate) async fn run(&mut self, words: &[&str]) -> Reply {
        let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        self.run_bytes(&words).await
    }

    pub(crate) async fn run_bytes(&mut self, words: &[&[u8]]) -> Reply {
        self.send(&encode(words)).await;
        self.reply().await
    }

    /// Sends a line of words separated by spaces.
    pub(crate) async fn line(&mut self, line: &str) -> Reply {
        let words: Vec<_> = line.split(' ').collect();
        self.run(&words).await
    }

    /// Sends lines at once and returns the replies.
    pub(crate) async fn pipeline(&mut self, lines: &[&str]) -> Vec<Reply> {
        let mut bytes = Vec::new();
        for line in lines {
            let words: Vec<_> = line.split(' ').map(str::as_bytes).collect();
            bytes.extend(encode(&words));
        }
        self.send(&bytes).await;
        let mut replies = Vec::new();
        for _ in lines {
            replies.push(self.reply().await);
        }
        replies
    }
}

/// A reply at the start of the bytes, and how many it takes.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let end = bytes.windows(2).position(|w| w == b"\r\n")?;
    let line = String::from_utf8_lossy(&bytes[1..end]).into_owned();
    let mut used = end + 2;
    let len: i64 = line.parse().unwrap_or(0);
    let reply = match bytes[0] {
        b'+' => Reply::Simple(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Int(line.parse().unwrap()),
        b'_' => Reply::Null,
        b'$' if len < 0 => Reply::Null,
        b'*' if len < 0 => Reply::NullArray,
        b'$' | b'=' => {
            let whole = bytes.get(used..used + len as usize + 2)?;
            used += whole.len();
            let content = &whole[..len as usize];
            match bytes[0] {
                b'$' => Reply::Bulk(content.to_vec()),
                _ => Reply::Verbatim(String::from_utf8_lossy(&content[4..]).into_owned()),
            }
        }
        kind @ (b'*' | b'%' | b'~' | b'>') => {
            let count = if kind == b'%' { 2 * len } else { len };
            let mut items = Vec::new();
            for _ in 0..count {
                let (item, more) = parse(&bytes[used..])?;
                items.push(item);
                used += more;
            }
            match kind {
                b'*' => Reply::Array(items),
                b'%' => Reply::Map(items),
                b'~' => Reply::Set(items),
                _ => Reply::Push(items),
            }
        }
        other => panic!("no type of RESP: {:?}", char::from(other)),
    };
    Some((reply, used))
}
