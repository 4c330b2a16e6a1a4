//! The command line's side of the administrator's socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Request, Response};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a question to the agent has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody there.
    #[error(
        "no agent answers on {}: {source}. Is the agent running (`systemctl status nvshare-agent`, or `kubectl get \
         pods`)? If it was started with another --admin-socket, give the same one here; in a pod, run this command \
         inside the agent's container", path.display()
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not root.
    #[error("you may not talk to the agent on {}: {source}. Use sudo: only root and the agent's own user may", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It stopped in the middle.
    #[error("the agent on {} did not answer: {source}. Look at its log; it may just be stopping", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another release.
    #[error("the agent on {} answered what this release does not understand ({source}): use the agent's own binary", path.display())]
    Unknown {
        /// The socket.
        path: PathBuf,
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// It refused.
    #[error("the agent refused: {0}")]
    Refused(String),
}

/// A connection to the running agent.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the agent behind the socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, AskError> {
        let path = path.to_owned();
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Client { stream: BufReader::new(stream), path }),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(AskError::Forbidden { path, source })
            }
            Err(source) => Err(AskError::NoAgent { path, source }),
        }
    }

    /// Asks once; a refusal is an error.
    pub fn ask(&mut self, request: &Request) -> Result<Response, AskError> {
        let line = self.exchange(request).map_err(|source| {
            let source = match source.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "10 seconds passed"),
                _ => source,
            };
            AskError::Silent { path: self.path.clone(), source }
        })?;
        match serde_json::from_str(&line) {
            Ok(Response::Error { why }) => Err(AskError::Refused(why)),
            Ok(response) => Ok(response),
            Err(source) => Err(AskError::Unknown { path: self.path.clone(), source }),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<String> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // A refusing agent may close before it has read; what it said is still there to be read.
        let sent = self.stream.get_mut().write_all(&line);
        let mut answer = String::new();
        match self.stream.read_line(&mut answer) {
            Ok(0) => Err(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(answer),
            Err(error) => Err(error),
        }
    }
}
