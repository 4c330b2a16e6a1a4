//! Introduces the plugin to the kubelet.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Endpoint;

use super::api::registration_client::RegistrationClient;
use super::api::{KUBELET_SOCKET, RegisterRequest, VERSION};
use super::{OWN_SOCKET, RESOURCE, service};

/// How long the kubelet may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the kubelet does not know the plugin.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No socket.
    #[error(
        "the kubelet's socket {} is missing; it is there while the kubelet runs (systemctl status kubelet): check that \
         the kubelet's directory is mounted into the agent's container, or name it with --kubelet-dir", path.display()
    )]
    NoSocket {
        /// Where it should be.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("the kubelet's socket {} cannot be used: {source}; run the agent as root", path.display())]
    Denied {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody there.
    #[error(
        "the kubelet does not answer on {}: {why}; check that it runs (systemctl status kubelet)", path.display()
    )]
    Silent {
        /// Where.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// It does not want the plugin.
    #[error(
        "the kubelet refuses the plugin: {why}; it has to speak {VERSION} (Kubernetes 1.26 or newer), and no other \
         plugin on this node may offer {RESOURCE}"
    )]
    Refused {
        /// What it said.
        why: String,
    },
}

/// Tells the kubelet of `directory` that there is a plugin, whose socket listens already: the kubelet comes at once.
pub async fn register(directory: &Path) -> Result<(), RegisterError> {
    let path = directory.join(KUBELET_SOCKET);
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(RegisterError::NoSocket { path }),
        Err(source) => return Err(RegisterError::Denied { path, source }),
        Ok(_) => {}
    }
    let silent = |why: String| RegisterError::Silent { path: path.clone(), why };
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
        .map_err(|error| silent(chain(&error)))?
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE);
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            return Err(match denied(&error) {
                Some(kind) => RegisterError::Denied { path, source: kind.into() },
                None => silent(chain(&error)),
            });
        }
    };
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: OWN_SOCKET.to_owned(),
        resource_name: RESOURCE.to_owned(),
        options: Some(service::OPTIONS),
    };
    match RegistrationClient::new(channel).register(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                silent(status.message().to_owned())
            }
            _ => RegisterError::Refused { why: status.message().to_owned() },
        }),
    }
}

/// An error with everything that led to it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// The kind of a system's refusal somewhere below.
fn denied(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(ErrorKind::PermissionDenied) {
            return kind;
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kubelet_that_is_not_there_is_named_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = register(directory.path()).await.unwrap_err();
        assert!(matches!(error, RegisterError::NoSocket { .. }));
        assert!(error.to_string().contains("--kubelet-dir"), "{error}");
        // The socket of one that was killed.
        drop(std::os::unix::net::UnixListener::bind(directory.path().join(KUBELET_SOCKET)).unwrap());
        let error = register(directory.path()).await.unwrap_err();
        assert!(matches!(error, RegisterError::Silent { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("refused") && text.contains("systemctl status kubelet"), "{text}");
    }
}
