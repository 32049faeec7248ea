//! A small HTTP/1.1 client of the tests' own: what it proves does not rest on ours.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A kept-alive connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

impl Connection {
    pub(crate) fn open(address: &str) -> io::Result<Self> {
        Self::on(TcpStream::connect(address)?, Duration::from_secs(60))
    }

    /// On a connection that is there; nothing is waited for longer than this.
    pub(crate) fn on(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a request and reads the whole reply.
    pub(crate) fn request(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<Reply> {
        self.request_with(method, target, "", body)
    }

    /// The same with more headers, each line of them ended by CR LF.
    pub(crate) fn request_with(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<Reply> {
        let length = body.len();
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        self.reply(method)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn reply(&mut self, method: &str) -> io::Result<Reply> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let status = self.line()?;
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(invalid)?;
        let mut reply = Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(invalid)?;
            reply
                .headers
                .push((name.to_owned(), value.trim().to_owned()));
        }
        if method == "HEAD" || status == 204 || status == 304 {
            return Ok(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).map_err(|_| invalid())?;
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk)?;
                if size == 0 {
                    return Ok(reply);
                }
                reply.body.extend_from_slice(&chunk[..size]);
            }
        }
        let length = reply
            .header("content-length")
            .map_or(Ok(0), str::parse)
            .map_err(|_| invalid())?;
        reply.body.resize(length, 0);
        self.stream.read_exact(&mut reply.body)?;
        Ok(reply)
    }
}
