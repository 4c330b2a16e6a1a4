//! A headless Chromium, spoken to by its `chromedriver` in WebDriver's JSON over HTTP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nvshare_testbed::wait_for;
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_mins(1);

/// One browser with a profile of its own. Dropping it ends every process of it.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    profile: TempDir,
}

impl Browser {
    /// Starts it, or says what must be installed.
    pub(crate) fn start() -> Result<Browser, String> {
        for program in ["chromium", "chromedriver"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                return Err(format!("there is no {program}: apt-get install chromium chromium-driver"));
            }
        }
        let profile = TempDir::with_prefix("nvshare-page-").expect("a directory for the profile");
        let mut driver = Command::new("chromedriver");
        // Temporary files of the browser go with the profile.
        driver.args(["--port=0"]).env("TMPDIR", profile.path()).stdin(Stdio::null());
        driver.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut driver = driver.spawn().expect("chromedriver");
        let port = port(&mut driver);
        let mut browser = Browser { driver, port, session: String::new(), profile };
        let data = format!("--user-data-dir={}", browser.profile.path().join("data").display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1240,1080",
            &data,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = browser.request("POST", "/session", &wanted).expect("a session of the browser");
        answer["sessionId"].as_str().expect("the session's id").clone_into(&mut browser.session);
        Ok(browser)
    }

    /// Opens a page.
    pub(crate) fn open(&self, url: &str) {
        self.command("POST", "url", &json!({"url": url}));
    }

    /// What a script returns.
    pub(crate) fn ask(&self, script: &str) -> Value {
        self.command("POST", "execute/sync", &json!({"script": script, "args": []}))
    }

    /// Presses a key and lets it go; `key` is the character that stands for it in WebDriver.
    pub(crate) fn press(&self, key: char) {
        let strokes = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.command("POST", "actions", &json!({"actions": [keyboard]}));
    }

    /// Everything in a log (`browser`: the console; `performance`: what was requested) since it was last read.
    pub(crate) fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.command("POST", "se/log", &json!({"type": kind}));
        entries.as_array().cloned().unwrap_or_default()
    }

    /// Chooses between `light` and `dark`, as the system would.
    pub(crate) fn scheme(&self, scheme: &str) {
        self.devtools(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
    }

    /// Makes the window as small as a telephone, or as wide as a desk.
    pub(crate) fn width(&self, pixels: u32) {
        self.size(pixels, 1080);
    }

    /// Makes the window so many pixels wide and high.
    pub(crate) fn size(&self, width: u32, height: u32) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", screen);
    }

    /// What is to be seen, as PNG in base 64.
    pub(crate) fn picture(&self) -> String {
        self.command("GET", "screenshot", &Value::Null).as_str().expect("a picture").to_owned()
    }

    /// Everything of the accessibility tree that has a role and a name.
    pub(crate) fn accessible(&self) -> Vec<(String, String)> {
        let tree = self.devtools("Accessibility.getFullAXTree", json!({}));
        let text = |node: &Value, what: &str| node[what]["value"].as_str().unwrap_or_default().to_owned();
        let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().map(|node| (text(node, "role"), text(node, "name"))).collect()
    }

    /// Ends the browser, and says what is left of it after a while: processes, and the directory.
    pub(crate) fn end(mut self) -> Vec<String> {
        let profile = self.profile.path().to_owned();
        self.quit();
        wait_for("the browser ends", LIMIT, || processes(&profile).is_empty().then_some(()));
        drop(self);
        profile.exists().then(|| profile.display().to_string()).into_iter().collect()
    }

    fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("POST", "goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn command(&self, method: &str, name: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{name}", self.session);
        self.request(method, &path, body).unwrap_or_else(|error| panic!("{method} {name}: {error:#}"))
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        // chromedriver keeps the connection open, whatever it is asked to do.
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let before = head.len();
            anyhow::ensure!(stream.read_line(&mut head)? > 0, "an answer that breaks off: {head}");
            let (name, value) = head[before..].split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().context("the length of an answer")?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let mut answer: Value = serde_json::from_slice(&body).with_context(|| head.clone())?;
        anyhow::ensure!(head.contains(" 200 "), "{answer}");
        Ok(answer["value"].take())
    }

    /// Asks the browser to end, and its driver.
    fn quit(&mut self) {
        if !self.session.is_empty() {
            let _ = self.request("DELETE", &format!("/session/{}", self.session), &Value::Null);
            self.session.clear();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.quit();
        // Those that did not listen: only they name this profile.
        for pid in processes(self.profile.path()) {
            let _ = nvshare_testbed::signal(pid, libc::SIGKILL);
        }
    }
}

/// Which port chromedriver chose: it says so in its first lines.
fn port(driver: &mut Child) -> u16 {
    let mut said = BufReader::new(driver.stdout.take().expect("its output"));
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(
            said.read_line(&mut line).expect("its output"),
            0,
            "chromedriver ended before it listened"
        );
        let port = line
            .rsplit_once("on port ")
            .and_then(|(_, port)| port.trim_end_matches(['.', '\n']).parse().ok());
        if let Some(port) = port.filter(|port| *port != 0) {
            // It may go on talking, and nobody listens.
            std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
            return port;
        }
    }
}

/// Processes that name this profile in their command line or environment.
fn processes(profile: &Path) -> Vec<u32> {
    let profile = profile.as_os_str().as_encoded_bytes();
    let names = |file: String| {
        let text = fs::read(file).unwrap_or_default();
        text.windows(profile.len()).any(|window| window == profile)
    };
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| names(format!("/proc/{pid}/cmdline")) || names(format!("/proc/{pid}/environ")))
        .collect()
}
