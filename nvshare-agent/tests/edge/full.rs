//! File systems that are full where the agent writes: the one remedy, whatever was to be written.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nvshare_testbed::{Artifacts, wait_for};

use crate::home::{Home, LIMIT, text};

/// A file system of some kilobytes and some files. It goes away with this value.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Option<Small> {
        fs::create_dir(path).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=64k,nr_inodes=64,mode=0700", "nvshare-test"];
        let mount = Command::new("mount").args(options).arg(path).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Small(path.to_owned()));
        }
        eprintln!("SKIPPED: no small file system to fill: mounting one needs root");
        None
    }

    /// Until neither a byte nor a file fits.
    fn fill(&self) {
        let mut file = File::create(self.0.join("bytes")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let full = (0..1000).any(|number| File::create(self.0.join(number.to_string())).is_err());
        assert!(full, "files still fit");
    }

    /// Room for files, and for nothing in them.
    fn fill_with_bytes(&self) {
        let mut file = File::create(self.0.join("bytes")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What runs in it may take a moment to end.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn remedy(path: &Path) -> String {
    format!("{}: free some", path.display())
}

#[test]
fn without_space_for_the_clients_socket_the_agent_ends_and_says_so() {
    let home = Home::new();
    let socket = home.socket();
    let Some(small) = Small::mount(socket.parent().unwrap()) else { return };
    small.fill();
    let output = home.command(&["--no-uprobes", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stderr);
    let expected = format!("no space left on the filesystem of {}", remedy(&socket));
    assert!(said.contains(&expected) && !said.contains("as root"), "{said}");
}

#[test]
fn without_space_for_the_administrators_socket_the_agent_runs_and_says_so() {
    let home = Home::new();
    let socket = home.admin_socket();
    let Some(small) = Small::mount(socket.parent().unwrap()) else { return };
    small.fill();
    let agent = home.start();
    let readiness = agent.get("/readyz").1;
    assert!(readiness.contains(&remedy(&socket)), "{readiness}");
    assert_eq!(agent.get("/livez").0, 200);
}

#[test]
fn without_space_for_what_the_plugin_writes_it_says_so() {
    let home = Home::new();
    let (library, small) = (home.0.path().join("library"), home.0.path().join("small"));
    let Some(mounted) = Small::mount(&small) else { return };
    fs::create_dir(&library).unwrap();
    for directory in [&library, &small] {
        File::create(directory.join("libnvshare.so")).unwrap();
    }
    mounted.fill_with_bytes();
    fs::copy(Artifacts::find().nvml(), home.nvml()).unwrap();
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let said = |more: &[String], files: &[&str]| {
        let mut flags = vec!["--no-uprobes", "--device-plugin=on"];
        flags.extend(more.iter().map(String::as_str));
        let agent = home.start_with(&flags);
        for file in files {
            wait_for(&format!("{file} has no space"), LIMIT, || {
                agent.get("/readyz").1.contains(&remedy(&small.join(file))).then_some(())
            });
        }
    };
    said(&[flag("library-dir", &small), flag("kubelet-dir", &library)], &["ld.so.preload"]);
    let cdi = [flag("library-dir", &library), flag("cdi-dir", &small), "--preload=cdi".to_owned()];
    said(&[&cdi[..], &[flag("kubelet-dir", &library)]].concat(), &["nvshare.com-gpu.json"]);
    mounted.fill();
    said(&[flag("library-dir", &library), flag("kubelet-dir", &small)], &["nvshare.sock"]);
}
