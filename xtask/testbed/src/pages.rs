//! An agent's HTTP pages, as somebody who only has its address sees them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// The pages at an address.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    address: SocketAddr,
}

impl Pages {
    /// At this address.
    pub fn at(address: SocketAddr) -> Pages {
        Pages { address }
    }

    /// At an address where nobody listens at this moment, for an agent that will.
    ///
    /// # Panics
    /// Where the machine has none.
    pub fn at_a_free_address() -> Pages {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Pages { address: listener.local_addr().expect("its address") }
    }

    /// Where they are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `GET path`: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a header")?;
        let status = head.split(' ').nth(1).context("an answer without a status")?.parse()?;
        anyhow::ensure!(!head.to_ascii_lowercase().contains("chunked"), "a chunked answer");
        Ok((status, body.to_owned()))
    }

    /// `/api/v1/state`, or why not.
    pub fn state(&self) -> Result<Value> {
        let (status, body) = self.get("/api/v1/state").context("cannot ask the agent for its state")?;
        anyhow::ensure!(status == 200, "the agent answered {status} to a question for its state: {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
