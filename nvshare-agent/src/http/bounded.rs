//! The connections of the pages: so many at once, so many from one address, and none for longer than a request takes.
//! Anybody who reaches the port can make them, so nobody is made to wait for a place: a connection on which nothing was
//! answered yet gives its place to the next one, the oldest first, and where all are in use the new one is closed.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

/// How many connections there may be.
const CONNECTIONS: usize = 512;
/// How many of them one address may have: a scraper and a few browsers behind one gateway need a handful.
const PER_ADDRESS: usize = 128;
/// The first request must be there, and answered, within this time.
const FIRST: Duration = Duration::from_secs(5);
/// A connection ends when nothing was answered on it for so long: its request did not come, or its answer was not read.
const SILENCE: Duration = Duration::from_secs(30);

/// How much a listener bears.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    connections: usize,
    per_address: usize,
    first: Duration,
    silence: Duration,
}

/// A listener with limits.
pub(super) struct Bounded {
    listener: TcpListener,
    bounds: Bounds,
    seats: Seats,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Bounded {
        let bounds =
            Bounds { connections: CONNECTIONS, per_address: PER_ADDRESS, first: FIRST, silence: SILENCE };
        Bounded { listener, bounds, seats: Seats::default() }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // Dropped, it is closed.
            let Some(seat) = self.seats.take(address.ip(), self.bounds) else { continue };
            let ends = Box::pin(tokio::time::sleep(self.bounds.first));
            let silence = self.bounds.silence;
            return (Connection { stream, ends, silence, seat, seats: self.seats.clone() }, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection's place.
#[derive(Debug)]
struct Seat {
    address: IpAddr,
    /// Something was answered on it.
    used: AtomicBool,
    /// It was given to another.
    lost: AtomicBool,
    waits: Mutex<Option<Waker>>,
}

impl Seat {
    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        if let Some(waker) = self.waits.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

/// All places that are taken, oldest first.
#[derive(Clone, Debug, Default)]
struct Seats(Arc<Mutex<VecDeque<Arc<Seat>>>>);

impl Seats {
    fn take(&self, address: IpAddr, bounds: Bounds) -> Option<Arc<Seat>> {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = seats.iter().filter(|seat| seat.address == address).count();
        let crowded = own >= bounds.per_address;
        if crowded || seats.len() >= bounds.connections {
            let gives = |seat: &Arc<Seat>| {
                !seat.used.load(Ordering::Acquire) && (!crowded || seat.address == address)
            };
            let at = seats.iter().position(gives)?;
            seats.remove(at)?.lose();
        }
        let seat = Seat {
            address,
            used: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            waits: Mutex::default(),
        };
        let seat = Arc::new(seat);
        seats.push_back(Arc::clone(&seat));
        Some(seat)
    }

    fn leave(&self, seat: &Arc<Seat>) {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|other| !Arc::ptr_eq(other, seat));
    }
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    silence: Duration,
    seat: Arc<Seat>,
    seats: Seats,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.seats.leave(&self.seat);
    }
}

impl Connection {
    /// What to answer when there is nothing to do: wait, or the end.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        *self.seat.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        // Looked at last: who takes the place sets this first, and then wakes.
        if self.seat.lost.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
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
                self.seat.used.store(true, Ordering::Release);
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

    async fn bounded(bounds: Bounds) -> (Bounded, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded { listener, bounds, seats: Seats::default() }, address)
    }

    const WIDE: Bounds = Bounds {
        connections: 8,
        per_address: 8,
        first: Duration::from_secs(100),
        silence: Duration::from_secs(100),
    };

    #[tokio::test]
    async fn a_connection_that_says_nothing_ends() {
        let (mut bounded, address) = bounded(Bounds { first: Duration::from_millis(50), ..WIDE }).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let (mut first, _) = bounded.accept().await;
        assert_eq!(first.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_oldest_that_says_nothing_gives_its_place_to_the_next() {
        let (mut bounded, address) = bounded(Bounds { per_address: 2, ..WIDE }).await;
        let mut clients = Vec::new();
        let mut served = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            served.push(bounded.accept().await.0);
        }
        // The first is in use: it was answered.
        served[0].write_all(b"y").await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        let (mut next, _) = bounded.accept().await;
        assert_eq!(served[1].read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        third.write_all(b"x").await.unwrap();
        let mut bytes = [0];
        assert_eq!(next.read(&mut bytes).await.unwrap(), 1);
        next.write_all(b"y").await.unwrap();
    }

    #[tokio::test]
    async fn where_all_places_are_in_use_the_next_is_closed_and_nobody_waits() {
        let (mut bounded, address) = bounded(Bounds { connections: 1, ..WIDE }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        let (mut served, _) = bounded.accept().await;
        served.write_all(b"y").await.unwrap();
        assert_eq!(first.read(&mut [0]).await.unwrap(), 1);
        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut last = None;
        let accepts = async {
            last = Some(bounded.accept().await.0);
        };
        let closed = async {
            assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)));
            drop(served);
            drop(first);
            TcpStream::connect(address).await.unwrap()
        };
        let ((), _third) = tokio::join!(accepts, closed);
        assert!(last.is_some());
    }
}
