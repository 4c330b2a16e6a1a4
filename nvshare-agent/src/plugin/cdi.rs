//! The CDI specification of `--preload=cdi`: what the container's runtime adds to a container that has a share.
//! Format: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::RESOURCE;
use super::allocate::Hand;
use super::file::replace;
use crate::no_space;

/// The file, in the directory of specifications.
const FILE: &str = "nvshare.com-gpu.json";
/// The one device: every share needs the same, and the environment tells which it is.
const DEVICE: &str = "share";
/// Of the format. Everything used here is older.
const VERSION: &str = "0.5.0";

/// Why there is no specification.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the CDI specification {}: {}", path.display(), no_space::cause(source, path,
        "mount that directory of the node into the agent's container, writable, or choose another one that the container \
         runtime reads with --cdi-dir")
)]
pub struct CdiError {
    path: PathBuf,
    source: io::Error,
}

/// The device as `Allocate` names it.
pub fn device_name() -> String {
    format!("{RESOURCE}={DEVICE}")
}

/// What is in the file.
pub fn specification(hand: &Hand) -> Value {
    let mounts: Vec<Value> = hand
        .mounts()
        .into_iter()
        .map(|mount| {
            json!({
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
            })
        })
        .collect();
    json!({
        "cdiVersion": VERSION,
        "kind": RESOURCE,
        "devices": [{ "name": DEVICE, "containerEdits": { "mounts": mounts } }],
    })
}

/// Puts the specification into `directory`, if it is not there already. A reader sees the old one or the new one.
pub fn write(directory: &Path, hand: &Hand) -> Result<(), CdiError> {
    let path = directory.join(FILE);
    let text = format!("{:#}\n", specification(hand));
    std::fs::create_dir_all(directory)
        .and_then(|()| replace(&path, &text))
        .map_err(|source| CdiError { path, source })
}

#[cfg(test)]
mod tests {
    use super::super::options::Preload;
    use super::*;

    fn hand() -> Hand {
        Hand {
            socket: "/run/nvshare/agent.sock".into(),
            library: "/var/lib/nvshare/current".into(),
            preload: Preload::Cdi,
        }
    }

    #[test]
    fn the_specification_holds_what_a_container_would_get_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("cdi");
        write(&place, &hand()).unwrap();
        let names: Vec<_> =
            std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        let value: Value = serde_json::from_slice(&std::fs::read(place.join(FILE)).unwrap()).unwrap();
        assert_eq!(value["kind"], "nvshare.com/gpu");
        let mounts = value["devices"][0]["containerEdits"]["mounts"].as_array().unwrap();
        let expected = Hand { preload: Preload::LdSoPreload, ..hand() }.mounts();
        assert_eq!(mounts.len(), expected.len());
        for (mount, expected) in mounts.iter().zip(expected) {
            assert_eq!(mount["containerPath"], expected.container_path);
            assert_eq!(mount["hostPath"], expected.host_path);
            assert!(mount["options"].as_array().unwrap().contains(&"ro".into()));
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_with_the_remedy() {
        let error = write(Path::new("/proc/nowhere"), &hand()).unwrap_err().to_string();
        assert!(error.contains("/proc/nowhere") && error.contains("--cdi-dir"), "{error}");
    }
}
