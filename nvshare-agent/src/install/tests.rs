//! What an installation leaves behind, whatever was there before.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use tempfile::TempDir;

use super::*;

/// A node's directory and a library to install there.
struct Place {
    root: TempDir,
    args: InstallArgs,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        let args = InstallArgs {
            from: root.path().join("released.so"),
            to: root.path().join("node/nvshare"),
            in_pods: IN_PODS.into(),
        };
        let place = Place { root, args };
        place.release(b"first");
        place
    }

    /// Makes the library to install another one.
    fn release(&self, contents: &[u8]) {
        fs::write(&self.args.from, [b"\x7fELF\x02", contents].concat()).unwrap();
    }

    fn install(&self, release: &str) -> Result<Installed, InstallError> {
        install(&self.args, release)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.args.to.join(path)
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(directory)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_library_is_found_in_every_way_a_loader_may_look_for_it() {
    let place = Place::new();
    let installed = place.install("1.2.3").unwrap();
    assert_eq!(installed, Installed { directory: place.at("1.2.3"), was_there: false });
    let library = fs::read(&place.args.from).unwrap();
    for path in
        ["libnvshare.so", "lib/x86_64-linux-gnu/libnvshare.so", "lib64/libnvshare.so", "lib/libnvshare.so"]
    {
        assert_eq!(fs::read(place.at("current").join(path)).unwrap(), library, "{path}");
        let target = fs::read_link(place.at("1.2.3").join(path));
        assert!(
            target.is_ok_and(|target| target.is_relative()) || path == LIBRARY,
            "{path} leads out of the mount"
        );
    }
    assert_eq!(
        fs::read_to_string(place.at("1.2.3/ld.so.preload")).unwrap(),
        "/var/lib/nvshare/current/libnvshare.so\n"
    );
    assert_eq!(fs::read_link(place.at("current")).unwrap(), Path::new("1.2.3"));
    assert_eq!(fs::metadata(place.at("1.2.3/libnvshare.so")).unwrap().mode() & 0o7777, 0o644);
    for directory in ["", "1.2.3", "1.2.3/lib", "1.2.3/lib/x86_64-linux-gnu", "1.2.3/lib64"] {
        assert_eq!(fs::metadata(place.at(directory)).unwrap().mode() & 0o7777, 0o755, "{directory}");
    }
    assert_eq!(place.names("1.2.3"), ["ld.so.preload", "lib", "lib64", "libnvshare.so"]);
}

#[test]
fn a_library_that_is_there_already_is_left_alone() {
    let place = Place::new();
    place.install("1.2.3").unwrap();
    let before = fs::metadata(place.at("1.2.3/libnvshare.so")).unwrap();
    assert!(place.install("1.2.3").unwrap().was_there);
    let after = fs::metadata(place.at("1.2.3/libnvshare.so")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn another_library_of_the_same_release_is_refused_and_nothing_changes() {
    let place = Place::new();
    place.install("1.2.3").unwrap();
    let before = fs::read(place.at("1.2.3/libnvshare.so")).unwrap();
    place.release(b"second");
    let error = place.install("1.2.3").unwrap_err();
    assert!(matches!(error, InstallError::Differs { .. }), "{error}");
    assert!(
        error.to_string().contains("1.2.3/libnvshare.so") && error.to_string().contains("new version"),
        "{error}"
    );
    assert_eq!(fs::read(place.at("1.2.3/libnvshare.so")).unwrap(), before);
}

#[test]
fn a_new_release_stands_beside_the_old_one_that_pods_still_map() {
    let place = Place::new();
    place.install("1.2.3").unwrap();
    let old = fs::metadata(place.at("1.2.3/libnvshare.so")).unwrap().ino();
    place.release(b"second");
    place.install("1.3.0").unwrap();
    assert_eq!(fs::metadata(place.at("1.2.3/libnvshare.so")).unwrap().ino(), old);
    assert_eq!(fs::read_link(place.at("current")).unwrap(), Path::new("1.3.0"));
    assert_eq!(place.names("."), ["1.2.3", "1.3.0", "current"]);
}

#[test]
fn what_a_killed_installation_left_is_cleaned_up() {
    let place = Place::new();
    fs::create_dir_all(place.at("1.2.3/lib64")).unwrap();
    fs::write(place.at("1.2.3/.unfinished-libnvshare.so"), b"half").unwrap();
    symlink("nowhere", place.at(".unfinished-current")).unwrap();
    symlink("nowhere", place.at("1.2.3/lib64/.unfinished-libnvshare.so")).unwrap();
    place.install("1.2.3").unwrap();
    assert_eq!(place.names("."), ["1.2.3", "current"]);
    assert_eq!(place.names("1.2.3"), ["ld.so.preload", "lib", "lib64", "libnvshare.so"]);
    assert_eq!(place.names("1.2.3/lib64"), ["libnvshare.so"]);
}

#[test]
fn what_is_no_library_or_no_link_is_named_with_the_remedy() {
    let place = Place::new();
    fs::write(&place.args.from, b"#!/bin/sh\n").unwrap();
    let error = place.install("1.2.3").unwrap_err().to_string();
    assert!(error.contains("released.so") && error.contains("cargo xtask dist"), "{error}");
    fs::remove_file(&place.args.from).unwrap();
    let error = place.install("1.2.3").unwrap_err().to_string();
    assert!(error.contains("released.so") && error.contains("--from"), "{error}");
    place.release(b"first");
    fs::create_dir_all(place.at("current")).unwrap();
    let error = place.install("1.2.3").unwrap_err().to_string();
    assert!(error.contains("/current is there") && error.contains("remove it"), "{error}");
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_half_written() {
    let place = Place::new();
    let small = place.root.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "nvshare-test"]).arg(&small).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        eprintln!("SKIPPED: no small file system to fill: mounting one needs root");
        return;
    }
    place.release(&vec![7; 256 << 10]);
    let args =
        InstallArgs { to: small.join("nvshare"), from: place.args.from.clone(), in_pods: IN_PODS.into() };
    let error = install(&args, "1.2.3").unwrap_err();
    let left: Vec<_> = fs::read_dir(small.join("nvshare/1.2.3")).unwrap().collect();
    let current = small.join("nvshare/current").exists();
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    assert!(matches!(error, InstallError::Full { .. }), "{error}");
    assert!(
        error.to_string().contains("1.2.3/libnvshare.so") && error.to_string().contains("free some"),
        "{error}"
    );
    assert!(left.is_empty() && !current, "{left:?}");
}
