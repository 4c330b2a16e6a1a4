//! `nvshare-agent top` in a real terminal (tmux), against a node whose clients take turns: what it shows, what keys do,
//! and that the terminal is afterwards as it was. Needs Debian's package `tmux`; without it it says that it is skipped.

use std::process::{Command, Stdio};
use std::time::Duration;

use nvshare_testbed::{Client, Node, wait_for};

const LIMIT: Duration = Duration::from_mins(2);
const LEASES: [&str; 6] = ["--lease-floor", "500ms", "--lease-ceiling", "700ms", "--reserve", "2M"];

/// A terminal with a shell in it, on a tmux server of its own. Both end with this value.
struct Terminal {
    socket: std::path::PathBuf,
}

impl Terminal {
    fn start(node: &Node) -> Terminal {
        let terminal = Terminal { socket: node.path().join("tmux.sock") };
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "150",
            "-y",
            "30",
            "env",
            "PS1=prompt> ",
            "sh",
        ]);
        terminal.wait("the shell's prompt", "prompt>");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        let output = command.arg("-S").arg(&self.socket).args(arguments).output().expect("tmux");
        assert!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// What is to be seen.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn wait(&self, what: &str, text: &str) -> String {
        self.wait_until(what, |screen| screen.contains(text))
    }

    fn wait_until(&self, what: &str, seen: impl Fn(&str) -> bool) -> String {
        wait_for(what, LIMIT, || Some(self.screen()).filter(|screen| seen(screen)))
    }

    /// Whether a program has the whole screen, and whether the cursor is to be seen.
    fn state(&self) -> String {
        self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim().to_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the terminal shows:\n{}", self.screen());
        }
        let _ = Command::new("tmux")
            .arg("-S")
            .arg(&self.socket)
            .arg("kill-server")
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn top_shows_four_clients_obeys_keys_and_leaves_the_terminal_as_it_was() {
    if Command::new("tmux").arg("-V").stdout(Stdio::null()).status().is_err() {
        return eprintln!("SKIPPED: top is not tested in a terminal: there is no tmux: apt-get install tmux");
    }
    let node = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "200000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        // Programs without the library are listed too.
        .alone()
        .build();
    let agent = node.agent(LEASES);
    let start = |seed| {
        let flags = format!("--bytes 64M --buffers 4 --seed {seed} --seconds 20");
        Client::start(&mut node.workload(&flags).with_shim())
    };
    let mut clients: Vec<Client> = (1..=4).map(start).collect();
    wait_for("the clients take turns", LIMIT, || {
        (agent.state()["switches"]["count"].as_u64() >= Some(2)).then_some(())
    });

    let terminal = Terminal::start(&node);
    assert_eq!(terminal.state(), "0 1");
    let before = terminal.tmux(&["display-message", "-p", "#{pane_tty}"]).trim().to_owned();
    let modes = || {
        let output = Command::new("stty").args(["-F", &before, "-a"]).output().expect("stty");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let usual = modes();
    let program = node.artifacts().agent();
    let command = format!(
        "{} top --every 100ms --admin-socket {}; echo ended with $?",
        program.display(),
        node.admin_socket().display()
    );
    terminal.keys(&[&command, "Enter"]);
    let pids: Vec<String> = clients.iter().map(|client| format!(" {} ", client.id())).collect();
    let screen = terminal.wait_until("four clients and the card", |screen| {
        pids.iter().all(|pid| screen.contains(pid))
            && screen.contains("in turns")
            && screen.contains("RESIDENT")
    });
    assert!(screen.contains("GPU 0") && screen.contains("####") && screen.contains("q quit"), "{screen}");
    assert_eq!(terminal.state(), "1 0", "the whole screen, no cursor");

    terminal.keys(&["s"]);
    terminal.wait("the order that was chosen", "s sort (activity)");
    terminal.keys(&["?"]);
    terminal.wait("the help", "sort by number, activity");
    terminal.keys(&["?"]);
    terminal.wait_until("no help", |screen| !screen.contains("sort by number"));
    terminal.tmux(&["resize-window", "-x", "90", "-y", "20"]);
    terminal.wait_until("the smaller window is filled to its end", |screen| {
        screen.lines().next_back().is_some_and(|line| line.contains("q quit"))
    });

    terminal.keys(&["q"]);
    terminal.wait("the end", "ended with 0");
    assert_eq!(terminal.state(), "0 1", "the shell's own screen, with a cursor");
    assert!(!terminal.screen().contains("RESIDENT"), "nothing of the picture stays");
    wait_for("the terminal's modes are as before", LIMIT, || {
        let shape = |modes: &str| {
            modes.split_once(';').map(|(_, rest)| rest.split_once("intr").map(|(_, r)| r.to_owned()))
        };
        (shape(&modes()) == shape(&usual)).then_some(())
    });
    drop(terminal);
    for client in &mut clients {
        client.succeed();
    }
    assert_eq!(node.violations(), Vec::<String>::new());
}
