//! The loop of a connection: read, run, acknowledge, write.
//!
//! One task; one buffer for what came, one for what goes. It gives the worker back only where
//! [`Session::step`] says that something must be waited for, and moves to a blocking thread with
//! everything it has where that may be the disk. Replies leave when all that was received is run,
//! or when [`OUT_BYTES`] of them wait: a client that does not read is not read from either, so
//! nothing piles up for it but the replies to one command.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Sleep;

use crate::resp::client::{Client, Mail};
use crate::resp::parse::{Found, Parser};
use crate::resp::pubsub;
use crate::resp::session::{Hold, Session};
use crate::resp::shared::Shared;
use crate::service::error::Error;

/// Replies are sent when so many bytes wait, even if there is more to run.
pub const OUT_BYTES: usize = 1 << 20;
/// What a buffer has room for at first, and what an idle one may keep.
const SMALL_BUFFER: usize = 2 << 10;
const KEPT_BUFFER: usize = 64 << 10;
/// Most that is read at once.
const READ_BYTES: usize = 1 << 20;
/// Requests beyond this count against `limits.inflight_bytes`.
const FREE_BYTES: usize = 256 << 10;

/// How long a connection may wait for its client.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For the next command; zero: for ever.
    pub idle: Duration,
    /// For the next bytes of a reply to be taken.
    pub write: Duration,
}

/// Why the commands stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Everything that was received is run.
    Input,
    /// Many replies wait.
    Flush,
    /// The client said farewell, or nonsense.
    Close,
    /// Something must be waited for.
    Hold(Hold),
}

/// What a connection consists of, apart from its socket.
struct Connection {
    session: Session,
    parser: Parser,
    buffer: Vec<u8>,
    /// A request was found and has not been run to its end.
    has_request: bool,
    /// How much to read at once.
    want: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn run(&mut self) -> Next {
        loop {
            if self.session.out.bytes.len() > OUT_BYTES {
                return match self.session.flush_run() {
                    Ok(()) => Next::Flush,
                    Err(hold) => Next::Hold(hold),
                };
            }
            if !self.has_request {
                match self.parser.next(&self.buffer) {
                    Ok(Found::Request) => self.has_request = true,
                    Ok(Found::Incomplete) => {
                        self.session.forget_ahead();
                        return match self.session.flush_run() {
                            Ok(()) => Next::Input,
                            Err(hold) => Next::Hold(hold),
                        };
                    }
                    Err(error) => {
                        if let Err(hold) = self.session.flush_run() {
                            return Next::Hold(hold);
                        }
                        self.session.out.error(&format!("ERR {error}"));
                        return Next::Close;
                    }
                }
            }
            let args = self.parser.args(&self.buffer);
            // Web pages can make a browser send such lines, but not speak RESP.
            let name = args.get(0);
            if name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:") {
                tracing::warn!(
                    client = self.session.client.address,
                    "a browser spoke to the RESP port"
                );
                return Next::Close;
            }
            if name.eq_ignore_ascii_case(b"get") {
                let rest = &self.buffer[self.parser.consumed()..];
                self.session.look_ahead(args, rest);
            } else {
                self.session.forget_ahead();
            }
            if let Err(hold) = self.session.step(args) {
                return Next::Hold(hold);
            }
            self.has_request = false;
            if self.session.closing {
                return match self.session.flush_run() {
                    Ok(()) => Next::Close,
                    Err(hold) => Next::Hold(hold),
                };
            }
        }
    }

    /// Makes room for what comes next.
    ///
    /// # Errors
    /// Large requests take all the memory they may.
    fn make_room(&mut self) -> Result<(), Error> {
        if self.parser.consumed() > 0 {
            self.buffer.drain(..self.parser.consumed());
            self.parser.removed();
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
            self.permit = None;
            self.want = SMALL_BUFFER;
        }
        let lacks = self.parser.lacks(&self.buffer).min(READ_BYTES);
        let want = self.want.max(lacks);
        if self.buffer.capacity() - self.buffer.len() < want.min(SMALL_BUFFER).max(lacks) {
            self.buffer.reserve(want);
            let capacity = self.buffer.capacity();
            if capacity > FREE_BYTES {
                self.permit = None;
                self.permit = Some(self.session.service().reserve_body(capacity)?);
            }
        }
        Ok(())
    }
}

/// Takes the connection's place back whatever ends it.
struct Place {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.clients.lock().remove(&self.client.id);
        self.shared.metrics.connections.dec();
    }
}

/// Serves a client until it goes, or has to.
pub(crate) async fn serve_connection(
    stream: TcpStream,
    shared: Arc<Shared>,
    pace: Pace,
    alive: mpsc::Sender<()>,
) {
    let name = |address: io::Result<std::net::SocketAddr>| {
        address
            .map(|address| address.to_string())
            .unwrap_or_default()
    };
    let ends = (name(stream.peer_addr()), name(stream.local_addr()));
    let (mailbox, mail) = mpsc::unbounded_channel();
    let now = shared.service.clock().monotonic();
    let client = Arc::new(Client::new(shared.next_client(), ends, now, mailbox));
    shared.clients.lock().insert(client.id, Arc::clone(&client));
    let place = Place {
        shared: Arc::clone(&shared),
        client: Arc::clone(&client),
    };
    if shared.service.is_draining() {
        client.send(Mail::Drain);
    }
    let parser = Parser::new(shared.max_bulk, shared.max_request);
    let connection = Box::new(Connection {
        session: Session::new(shared, client),
        parser,
        buffer: Vec::new(),
        has_request: false,
        want: SMALL_BUFFER,
        permit: None,
    });
    let mut socket = Socket {
        stream,
        client: Arc::clone(&place.client),
        mail,
        pace,
        messages: Vec::new(),
        leaving: false,
    };
    if let Err(error) = talk(connection, &mut socket).await {
        tracing::debug!(%error, "connection ended");
    }
    drop(place);
    drop(alive);
}

async fn talk(connection: Box<Connection>, socket: &mut Socket) -> io::Result<()> {
    let mut guard = Guard(Some(connection));
    loop {
        let Some(mut connection) = guard.0.take() else {
            return Ok(());
        };
        let began = connection.session.start_clock();
        connection.session.client.note_active(began);
        let mut next = connection.run();
        loop {
            match next {
                Next::Input | Next::Flush | Next::Close => {
                    settle(&mut connection.session).await;
                    connection.session.acked();
                    if !connection.session.out.bytes.is_empty() {
                        // Whoever else has sent something is served first, and all replies leave
                        // together: a client that serves many connections is then woken once, not
                        // for each reply.
                        tokio::task::yield_now().await;
                    }
                    if next == Next::Flush && !connection.session.closing {
                        socket.write(&mut connection.session.out.bytes).await?;
                        next = connection.run();
                        continue;
                    }
                    break;
                }
                Next::Hold(Hold::Settle) => settle(&mut connection.session).await,
                Next::Hold(Hold::Fresh) => {
                    settle(&mut connection.session).await;
                    let (stale, at_least) = connection.session.read_point();
                    let service = connection.session.service().clone();
                    let point = service.read_point(stale, at_least).await;
                    connection.session.freshened(point);
                }
                Next::Hold(Hold::Keys(stripes)) => {
                    let service = connection.session.service().clone();
                    let held = service.hold(stripes).await;
                    connection.session.hold_keys(held);
                }
                Next::Hold(Hold::Outcome) => {
                    if let Some(ticket) = connection.session.take_attempt() {
                        let outcome = ticket.acked().await;
                        connection.session.attempted(outcome);
                    }
                }
                Next::Hold(Hold::Pause(pause)) => tokio::time::sleep(pause).await,
                Next::Hold(Hold::Delay(delay, reply)) => {
                    settle(&mut connection.session).await;
                    connection.session.acked();
                    socket.write(&mut connection.session.out.bytes).await?;
                    socket.wait(delay).await?;
                    connection.session.delay_is_over(reply);
                    connection.has_request = false;
                }
                Next::Hold(Hold::Thread) => {
                    let moved = tokio::task::spawn_blocking(move || {
                        connection.session.on_thread = true;
                        // The way here is not what the command costs.
                        connection.session.start_clock();
                        let next = connection.run();
                        connection.session.on_thread = false;
                        (connection, next)
                    });
                    (connection, next) = moved.await.map_err(io::Error::other)?;
                    continue;
                }
            }
            if connection.session.closing {
                next = Next::Close;
                continue;
            }
            // What was waited for is not what the command costs.
            connection.session.start_clock();
            next = connection.run();
        }
        let closing = next == Next::Close || connection.session.closing;
        let session = &mut connection.session;
        let took = session.clock().saturating_sub(began);
        let shared = Arc::clone(&session.shared);
        shared.count(&mut session.counts, took);
        socket.write(&mut session.out.bytes).await?;
        if session.out.bytes.capacity() > KEPT_BUFFER {
            session.out.bytes = Vec::new();
        }
        if closing {
            guard.0 = Some(connection);
            return socket.close().await;
        }
        if let Err(error) = connection.make_room() {
            connection.session.write_failure(&error);
            socket.write(&mut connection.session.out.bytes).await?;
            return socket.close().await;
        }
        let room = connection.buffer.capacity() - connection.buffer.len();
        match socket.read(&mut connection.buffer).await? {
            0 => {
                guard.0 = Some(connection);
                return Ok(());
            }
            // There may be more where this came from.
            read if read == room => connection.want = (connection.want * 2).min(KEPT_BUFFER),
            _ => {}
        }
        connection.session.received();
        guard.0 = Some(connection);
    }
}

/// Stops listening whatever ends the connection.
struct Guard(Option<Box<Connection>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.0
            && connection.session.subscriptions.any()
        {
            pubsub::leave_all(&mut connection.session);
        }
    }
}

/// Waits until what the replies rest on is acknowledged.
async fn settle(session: &mut Session) {
    let Some(ticket) = session.take_ticket() else {
        return;
    };
    let outcome = ticket.acked().await;
    // Its replies say so.
    let _ = session.settled(outcome);
    // The wait is part of what the client waited for, and of no command.
    session.start_clock();
}

/// The socket and the mailbox of a connection.
struct Socket {
    stream: TcpStream,
    client: Arc<Client>,
    mail: UnboundedReceiver<Mail>,
    pace: Pace,
    /// Messages that arrived while something else was waited for.
    messages: Vec<bytes::Bytes>,
    /// The server stops: close when there is nothing more to run.
    leaving: bool,
}

fn killed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed by order")
}

impl Socket {
    /// Looks into the mailbox, always: whoever wakes this task takes its waker out of there.
    fn poll_mail(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(mail) = self.mail.poll_recv(cx) {
            match mail {
                Some(Mail::Message(message)) => self.messages.push(message),
                Some(Mail::Drain) => self.leaving = true,
                Some(Mail::Close) | None => return Err(killed()),
            }
        }
        Ok(())
    }

    /// Reads what the client sent; sends it messages meanwhile. 0: the connection ends.
    async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let idle = self.pace.idle;
        let mut timer = (!idle.is_zero()).then(|| Box::pin(tokio::time::sleep(idle)));
        loop {
            let read = poll_fn(|cx| {
                self.poll_mail(cx)?;
                if !self.messages.is_empty() {
                    return Poll::Ready(Ok(None));
                }
                if let Poll::Ready(read) = pin!(self.stream.read_buf(buffer)).poll(cx) {
                    return Poll::Ready(read.map(Some));
                }
                if self.leaving {
                    return Poll::Ready(Ok(Some(0)));
                }
                match poll_timer(&mut timer, cx) {
                    Poll::Ready(()) => Poll::Ready(Ok(Some(0))),
                    Poll::Pending => Poll::Pending,
                }
            });
            match read.await? {
                Some(read) => return Ok(read),
                None => self.send_messages().await?,
            }
        }
    }

    /// Writes all of `bytes` and empties it; messages that arrived meanwhile follow.
    async fn write(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.write_bytes(bytes).await?;
        bytes.clear();
        self.send_messages().await
    }

    async fn send_messages(&mut self) -> io::Result<()> {
        while !self.messages.is_empty() {
            let messages = std::mem::take(&mut self.messages);
            let whole = messages.concat();
            self.write_bytes(&whole).await?;
            self.client.took_bytes(whole.len());
        }
        Ok(())
    }

    async fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        let mut timer = None;
        while !rest.is_empty() {
            let wrote = poll_fn(|cx| {
                if let Poll::Ready(wrote) = Pin::new(&mut self.stream).poll_write(cx, rest) {
                    return Poll::Ready(wrote);
                }
                self.poll_mail(cx)?;
                let allowed = self.pace.write;
                timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(allowed)));
                match poll_timer(&mut timer, cx) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            });
            match wrote.await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                wrote => rest = &rest[wrote..],
            }
            timer = None;
        }
        Ok(())
    }

    /// Waits, unless the connection has to end.
    async fn wait(&mut self, time: Duration) -> io::Result<()> {
        let mut timer = Some(Box::pin(tokio::time::sleep(time)));
        poll_fn(|cx| {
            self.poll_mail(cx)?;
            if self.leaving {
                return Poll::Ready(Ok(()));
            }
            poll_timer(&mut timer, cx).map(Ok)
        })
        .await
    }

    /// Says that nothing more comes, and gives the client a moment to read what did: closing with
    /// unread bytes would reset the connection under the last reply.
    async fn close(&mut self) -> io::Result<()> {
        use tokio::io::AsyncWriteExt as _;
        let talk = async {
            self.stream.shutdown().await?;
            let mut rest = [0; 1024];
            while self.stream.read(&mut rest).await? > 0 {}
            Ok(())
        };
        tokio::time::timeout(Duration::from_millis(500), talk)
            .await
            .unwrap_or(Ok(()))
    }
}

/// A timer that is not there never ends.
fn poll_timer(timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    match timer {
        Some(timer) => timer.as_mut().poll(cx),
        None => Poll::Pending,
    }
}
