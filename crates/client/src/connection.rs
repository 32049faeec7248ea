//! A connection on which an answer is read also when the request could not be sent to its end.
//!
//! A server that refuses a request by its head answers at once, reads on for a while, and closes.
//! Then sending fails while the answer waits to be read, and the HTTP library gives up at the first
//! of both. So an [`Answering`] connection swallows what is sent once its peer takes no more: the
//! library waits for the answer as after a whole request, and finds it, or the end of the
//! connection. A write is never taken for done by this, because that is what an answer says.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower_service::Service;

/// Makes such connections.
#[derive(Clone, Debug)]
pub(crate) struct Connector(pub(crate) HttpConnector);

type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Answering<TcpStream>>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Connecting<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            Ok(TokioIo::new(Answering::new(stream)))
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Answering<T> {
    inner: T,
    /// The peer takes no more.
    deaf: bool,
}

impl<T> Answering<T> {
    fn new(inner: T) -> Self {
        Self { inner, deaf: false }
    }

    /// What becomes of a write of `len` bytes that ended so.
    fn written(&mut self, outcome: io::Result<usize>, len: usize) -> io::Result<usize> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match outcome {
            Err(error)
                if matches!(
                    error.kind(),
                    BrokenPipe | ConnectionAborted | ConnectionReset
                ) =>
            {
                self.deaf = true;
                Ok(len)
            }
            outcome => outcome,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Answering<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Answering<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let outcome = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        Poll::Ready(self.written(outcome, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(len));
        }
        let outcome = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(outcome, len))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<T: Connection> Connection for Answering<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use http::Request;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    /// Takes `room` bytes, then breaks; only then the answer can be read, and the end behind it.
    struct Breaking {
        room: usize,
        broken: bool,
        answer: &'static [u8],
        reader: Option<Waker>,
    }

    impl AsyncRead for Breaking {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.broken {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let len = self.answer.len().min(buf.remaining());
            let (now, later) = self.answer.split_at(len);
            buf.put_slice(now);
            self.answer = later;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Breaking {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let len = self.room.min(buf.len());
            self.room -= len;
            if len > 0 {
                return Poll::Ready(Ok(len));
            }
            self.broken = true;
            self.reader.take().into_iter().for_each(Waker::wake);
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn exchange(answer: &'static [u8]) -> hyper::Result<(u16, Bytes)> {
        let breaking = Breaking {
            room: 5000,
            broken: false,
            answer,
            reader: None,
        };
        let io = TokioIo::new(Answering::new(breaking));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        let body = Full::new(Bytes::from(vec![b'x'; 1 << 20]));
        let request = Request::put("/v1/keys/k").header("host", "h").body(body);
        let reply = sender.send_request(request.unwrap()).await?;
        let status = reply.status().as_u16();
        Ok((status, reply.into_body().collect().await?.to_bytes()))
    }

    #[test]
    fn an_answer_is_read_though_the_request_was_not_sent() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let refused = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
        let answer = runtime.block_on(exchange(refused)).unwrap();
        assert_eq!(answer, (413, Bytes::from_static(b"no")));
        let endless = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\n\r\nno";
        let answer = runtime.block_on(exchange(endless)).unwrap();
        assert_eq!(answer, (413, Bytes::from_static(b"no")));
        // Without an answer, or with half of one, the connection broke.
        for cut in [&b""[..], b"HTTP/1.1 413 Too"] {
            assert!(runtime.block_on(exchange(cut)).is_err());
        }
    }
}
