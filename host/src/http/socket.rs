//! The way to a client. Where it takes nothing of what is written, that fails in the end, whatever
//! hyper waits for: answers without a body, and what HTTP/2 says before a connection ends. Where it
//! still sends a body that nobody wants, the way back is closed last.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::unwanted::Unwanted;

/// Most that is read of what nobody wants.
const MOST_UNWANTED: usize = 16 << 20;

/// A connection that is broken once its client takes nothing for longer than it may.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    patience: Duration,
    /// While something waits to be written: when that fails.
    fails: Option<Pin<Box<Sleep>>>,
    unwanted: Unwanted,
    /// How much more of it is read, and once nothing more is written, until when.
    room: usize,
    closes: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// One whose client may take nothing for as long as `patience`. What it sends that is
    /// `unwanted` is read before the end, within its time.
    pub fn new(stream: TcpStream, patience: Duration, unwanted: Unwanted) -> Self {
        Self {
            stream,
            patience,
            fails: None,
            unwanted,
            room: MOST_UNWANTED,
            closes: None,
        }
    }

    /// What became of writing, an error where nothing did for too long.
    fn in_time(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.fails = None;
            return written;
        }
        let patience = self.patience;
        let fails = self.fails.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(fails.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            ErrorKind::TimedOut,
            "the client takes nothing",
        )))
    }

    /// Reads what the client still sends, until it has closed its side too or has sent too much.
    fn poll_unwanted(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let time = self.unwanted.time();
        let closes = self.closes.get_or_insert_with(|| Box::pin(sleep(time)));
        let mut bytes = [0; 8 << 10];
        while self.room > 0 && closes.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            let length = buffer.filled().len();
            if read.is_err() || length == 0 {
                break;
            }
            self.room = self.room.saturating_sub(length);
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Closes the way to the client, and then the way back (RFC 9112, section 9.6): the system
    /// resets a connection that is closed with something unread, and the client, which is
    /// still sending, would lose its answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closes.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        if self.unwanted.is_left() {
            ready!(self.poll_unwanted(context));
        }
        Poll::Ready(Ok(()))
    }
}
