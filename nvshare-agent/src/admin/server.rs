//! The agent's side of the administrator's socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, os::unix::net};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{MAX_LINE_BYTES, Request, Response};
use crate::no_space;

/// Administrators that are served at the same time.
const CONNECTIONS: usize = 16;
/// How long a connection may stay silent, or refuse to read its answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Why there is no administrator's socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its directory is not there and cannot be made.
    #[error(
        "cannot create {}: {}", directory.display(), no_space::cause(source, directory,
            "run the agent as root, or name a directory it may write to with --admin-socket")
    )]
    Directory {
        /// Of the socket.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could put their own socket in our place.
    #[error(
        "{} can be written to by others than its owner (mode {mode:03o}): use a directory of mode 0700 for --admin-socket",
        directory.display()
    )]
    Open {
        /// Of the socket.
        directory: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another agent runs.
    #[error("another agent answers on {}: stop it first, or choose another --admin-socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {}", path.display(), no_space::cause(source, path,
        "remove what is there, or choose another --admin-socket"))]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens on `path`, in a directory of mode 0700 that is made if it is not there.
    pub fn bind(path: &Path) -> Result<Server, BindError> {
        let path = path.to_owned();
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        private(&directory)?;
        if net::UnixStream::connect(&path).is_ok() {
            return Err(BindError::InUse { path });
        }
        let bound = remove_socket(&path).and_then(|()| {
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => Ok(Server { listener, path }),
            Err(source) => Err(BindError::Bind { path, source }),
        }
    }

    /// Answers every request by `answer`, until dropped.
    pub async fn serve<A, F>(self, answer: A)
    where
        A: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let answer = Arc::new(answer);
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept an administrator");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (answer, seats) = (Arc::clone(&answer), Arc::clone(&seats));
            tokio::spawn(async move {
                let seat = seats.try_acquire();
                let refusal = if seat.is_err() {
                    Some(format!("{CONNECTIONS} administrators are connected already: end one of them"))
                } else {
                    refusal(&stream)
                };
                if let Err(error) = converse(stream, refusal, answer.as_ref()).await {
                    debug!(%error, "an administrator's connection ended");
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes `directory` with mode 0700; one that exists must not be writable by others.
fn private(directory: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Directory { directory: directory.to_owned(), source };
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let mode = fs::metadata(directory).map_err(failed)?.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(BindError::Open { directory: directory.to_owned(), mode });
    }
    Ok(())
}

/// Removes the socket that a killed agent left; never anything that is not a socket.
fn remove_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in its place"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Why the peer may not ask; none when it may.
fn refusal(stream: &UnixStream) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => None,
        Ok(peer) => {
            Some(format!("uid {} is neither root nor the agent's own uid {own}: use sudo", peer.uid()))
        }
        Err(error) => Some(format!("the agent cannot tell who you are: {error}")),
    }
}

async fn converse<A, F>(mut stream: UnixStream, refusal: Option<String>, answer: &A) -> io::Result<()>
where
    A: Fn(Request) -> F,
    F: Future<Output = Response>,
{
    let (reader, mut writer) = stream.split();
    if let Some(why) = refusal {
        return send(&mut writer, &Response::Error { why }).await;
    }
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = timeout(PATIENCE, (&mut reader).take(limit).read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        if read > MAX_LINE_BYTES {
            let why = format!("a request is one line of at most {MAX_LINE_BYTES} bytes");
            return send(&mut writer, &Response::Error { why }).await;
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => answer(request).await,
            Err(error) => Response::Error {
                why: format!(
                    "{error}; expected {{\"request\":\"status\"}}, {{\"request\":\"set\",\"changes\":[\"lease-floor=200ms\"]}} or \
                     {{\"request\":\"order\",\"client\":3,\"order\":\"swap_out\"}}"
                ),
            },
        };
        send(&mut writer, &response).await?;
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};

    use tempfile::TempDir;

    use super::super::client::{AskError, Client};
    use super::*;
    use crate::health::Readiness;

    async fn answer(request: Request) -> Response {
        match request {
            Request::Status => Response::State {
                state: serde_json::json!({"clients": []}),
                readiness: Readiness { ready: true, missing: vec![] },
            },
            Request::Set { changes } => Response::Settings { settings: serde_json::json!(changes) },
            Request::Order { .. } => Response::Ordered,
        }
    }

    fn serving() -> (TempDir, PathBuf, tokio::runtime::Runtime) {
        let directory = TempDir::with_prefix("nvshare-admin-").unwrap();
        let path = directory.path().join("own/admin.sock");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(async { Server::bind(&path) }).unwrap();
        runtime.spawn(server.serve(answer));
        (directory, path, runtime)
    }

    #[test]
    fn requests_are_answered_one_after_another_on_one_connection() {
        let (_directory, path, _runtime) = serving();
        let mut client = Client::connect(&path).unwrap();
        assert!(matches!(client.ask(&Request::Status).unwrap(), Response::State { .. }));
        let changes = vec!["lease-floor=200ms".parse().unwrap(), "lease-factor=10".parse().unwrap()];
        let Response::Settings { settings } = client.ask(&Request::Set { changes }).unwrap() else {
            panic!()
        };
        assert_eq!(settings, serde_json::json!(["lease-floor=200ms", "lease-factor=10"]));
    }

    #[test]
    fn the_socket_is_for_its_owner_only() {
        let (_directory, path, _runtime) = serving();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn nonsense_is_answered_with_what_was_expected_and_the_next_request_still_works() {
        let (_directory, path, _runtime) = serving();
        let mut stream = net::UnixStream::connect(&path).unwrap();
        stream.write_all(b"hello\n{\"request\":\"status\"}\n").unwrap();
        let mut lines = io::BufReader::new(stream).lines();
        assert!(lines.next().unwrap().unwrap().contains("expected {"));
        assert!(lines.next().unwrap().unwrap().contains("\"answer\":\"state\""));
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let (_directory, path, _runtime) = serving();
        let stream = net::UnixStream::connect(&path).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&vec![b'x'; 4 * MAX_LINE_BYTES]));
        let mut lines = io::BufReader::new(stream).lines();
        assert!(lines.next().unwrap().unwrap().contains("at most 65536 bytes"));
        // The agent closes with bytes unread: an end, or a reset.
        assert!(lines.next().is_none_or(|line| line.is_err()));
        let _ = writing.join();
    }

    #[test]
    fn a_socket_left_by_a_killed_agent_is_replaced_and_a_living_one_is_not() {
        let (_directory, path, runtime) = serving();
        let second = runtime.block_on(async { Server::bind(&path) });
        assert!(matches!(second, Err(BindError::InUse { .. })), "{second:?}");
        let left = path.with_file_name("left.sock");
        drop(net::UnixListener::bind(&left).unwrap());
        runtime.block_on(async { Server::bind(&left) }).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_not_removed() {
        let (_directory, path, runtime) = serving();
        let file = path.with_file_name("notes.txt");
        fs::write(&file, "mine").unwrap();
        let error = runtime.block_on(async { Server::bind(&file) }).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let (directory, _path, runtime) = serving();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = runtime.block_on(async { Server::bind(&open.join("admin.sock")) });
        assert!(matches!(refused, Err(BindError::Open { mode: 0o777, .. })), "{refused:?}");
    }

    #[test]
    fn without_an_agent_the_error_names_the_socket_and_the_remedy() {
        let error = Client::connect(Path::new("/nowhere/admin.sock")).unwrap_err();
        assert!(matches!(error, AskError::NoAgent { .. }));
        let text = error.to_string();
        assert!(text.contains("/nowhere/admin.sock") && text.contains("--admin-socket"), "{text}");
    }
}
