//! Who may speak to the agent as its administrator: nobody but root and the agent's own user.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::home::{Home, text};

const NOBODY: u32 = 65534;

fn open(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn another_user_is_refused_by_the_mode_and_where_that_was_opened_by_the_agent() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let home = Home::new();
    let _agent = home.start();
    // The build directory need not be readable by everybody.
    let program = home.0.path().join("nvshare-agent");
    // By another process: a descriptor of ours that is open for writing, inherited by a child that another test starts in
    // this moment, would make the copy busy.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_nvshare-agent")).arg(&program).status().unwrap();
    assert!(copied.success(), "cp: {copied}");
    open(home.0.path(), 0o755);
    let ask = |uid: u32, words: &[&str]| -> Output {
        let mut command = Command::new(&program);
        command.args(words).arg("--admin-socket").arg(home.admin_socket()).uid(uid).gid(uid).output().unwrap()
    };
    let socket = home.admin_socket();
    let directory = socket.parent().unwrap();
    for (what, mode) in [("the directory's mode", 0o700), ("the socket's mode", 0o755)] {
        open(directory, mode);
        let output = ask(NOBODY, &["status"]);
        assert_eq!(output.status.code(), Some(3), "{what}: {output:?}");
        assert!(output.stdout.is_empty() && text(&output.stderr).contains("Use sudo"), "{what}: {output:?}");
    }
    open(&socket, 0o666);
    for words in [&["status"][..], &["set", "lease-factor=12"], &["pin", "1"]] {
        let output = ask(NOBODY, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("uid 65534 is neither root") && output.stdout.is_empty(), "{words:?}: {said}");
    }
    let output = ask(0, &["status", "--json"]);
    assert!(output.status.success(), "root may: {output:?}");
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all["state"]["settings"]["lease_factor"], 40.0, "nobody changed it");
}
