//! The connections of the pages: so many at once, and none for longer than a request takes. Anybody who reaches the port
//! can make them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// How many connections there may be.
const CONNECTIONS: usize = 256;
/// A connection ends when nothing was answered on it for so long: its request did not come, or its answer was not read.
const SILENCE: Duration = Duration::from_secs(30);

/// A listener with limits.
pub(super) struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    silence: Duration,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, permits: Arc::new(Semaphore::new(CONNECTIONS)), silence: SILENCE }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("it is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let ends = Box::pin(tokio::time::sleep(self.silence));
        (Connection { stream, ends, silence: self.silence, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    silence: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// What to answer when there is nothing to do: wait, or the end.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.ends.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A request that comes byte by byte makes its time no longer.
        match Pin::new(&mut self.stream).poll_read(context, into) {
            Poll::Pending => self.wait(context),
            ready @ Poll::Ready(_) => ready,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.wait(context),
            ready @ Poll::Ready(_) => {
                let later = Instant::now() + self.silence;
                self.ends.as_mut().reset(later);
                ready
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_says_nothing_ends_and_makes_room_for_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let permits = Arc::new(Semaphore::new(1));
        let mut bounded = Bounded { listener, permits, silence: Duration::from_millis(100) };
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut speaks = TcpStream::connect(address).await.unwrap();
        speaks.write_all(b"x").await.unwrap();
        let (mut first, _) = bounded.accept().await;
        assert!(tokio::time::timeout(Duration::from_millis(10), bounded.accept()).await.is_err());
        let mut bytes = [0];
        assert_eq!(first.read(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(first);
        let (mut second, _) = bounded.accept().await;
        assert_eq!(second.read(&mut bytes).await.unwrap(), 1);
        second.write_all(b"y").await.unwrap();
    }
}
