//! Why pods cannot be learned of, and what to do about it.

use std::path::Path;

/// A source of what is known of pods that does not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Two troubles of a kind are one: the details of a failed connection change from one attempt to the next.
    pub(super) kind: Kind,
    /// What was tried, what happened, and the remedy.
    pub(super) why: String,
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not set up.
    Configuration,
    /// The API server cannot be reached.
    Unreached,
    /// The API server refuses.
    Refused,
    /// The kubelet's socket is not there.
    NoSocket,
    /// The kubelet does not answer.
    Kubelet,
}

impl Trouble {
    /// Without its name only all nodes' pods could be asked for.
    pub(super) fn no_node() -> Trouble {
        let why = "the name of this node is not known, so its pods cannot be watched: set NODE_NAME from \
                   spec.nodeName by the downward API, or --node-name";
        Trouble { kind: Kind::Configuration, why: why.to_owned() }
    }

    /// There is an API server and no account.
    pub(super) fn no_account(error: &impl std::fmt::Display) -> Trouble {
        let why = format!(
            "cannot use the pod's service account: {error}; give the agent's pod one that is mounted \
             (automountServiceAccountToken), or run with --no-pods"
        );
        Trouble { kind: Kind::Configuration, why }
    }

    /// The API server has not said anything yet.
    pub(super) fn silent() -> Trouble {
        let why = "the API server has not answered yet; is it reachable from this node?";
        Trouble { kind: Kind::Unreached, why: why.to_owned() }
    }

    /// A request for pods failed.
    pub(super) fn of_api(error: &kube::Error) -> Trouble {
        match error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => Trouble {
                kind: Kind::Refused,
                why: format!(
                    "the API server refuses to show this node's pods ({}): the agent's service account needs get, \
                     list and watch on pods (a ClusterRole and its binding, as in deploy/)",
                    status.message
                ),
            },
            kube::Error::Api(status) => Trouble {
                kind: Kind::Unreached,
                why: format!(
                    "the API server cannot list this node's pods ({}): it is asked again",
                    status.message
                ),
            },
            error => Trouble {
                kind: Kind::Unreached,
                why: format!(
                    "cannot reach the API server ({}): it is asked again; is it reachable from this node?",
                    causes(error)
                ),
            },
        }
    }

    /// No socket of the kubelet.
    pub(super) fn no_socket(path: &Path) -> Trouble {
        let why = format!(
            "there is no pod-resources socket at {}: mount the kubelet's directory pod-resources into the agent's \
             container, or say where it is with --pod-resources",
            path.display()
        );
        Trouble { kind: Kind::NoSocket, why }
    }

    /// The socket is there.
    pub(super) fn of_kubelet(path: &Path, error: &impl std::fmt::Display) -> Trouble {
        let why = format!(
            "the kubelet does not answer on {} ({error}): it is asked again; is it running?",
            path.display()
        );
        Trouble { kind: Kind::Kubelet, why }
    }
}

/// An error and what caused it, in a line; the last cause is the one that helps.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_rights_that_are_missing() {
        let status = kube::core::Status::failure("pods is forbidden: User \"x\" cannot list", "Forbidden");
        let trouble = Trouble::of_api(&kube::Error::Api(status.with_code(403).boxed()));
        assert_eq!(trouble.kind, Kind::Refused);
        for part in ["pods is forbidden", "get, list and watch on pods", "ClusterRole"] {
            assert!(trouble.why.contains(part), "{} says nothing of {part}", trouble.why);
        }
    }
}
