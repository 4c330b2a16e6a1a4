//! What people write: requests on the admin socket, sizes and durations, the configuration file.

use std::ffi::OsString;
use std::io::Write;

use nvshare_agent::admin::change;
use nvshare_agent::admin::who::Who;
use nvshare_agent::admin::{Request, Response};
use nvshare_agent::config::file;
use nvshare_agent::pods::quantity;
use nvshare_agent_core::order::{Priority, Weight};
use nvshare_agent_core::value;

/// A line on the admin socket, either way. What was understood is written and read again: the same.
pub(crate) fn admin(line: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(line) {
        let again = serde_json::to_string(&request).expect("a request is JSON");
        let read: Request = serde_json::from_str(&again).expect("what we write we read");
        assert_eq!(serde_json::to_string(&read).expect("a request is JSON"), again);
    }
    let _ = serde_json::from_slice::<Response>(line);
}

/// The documented ones.
pub(crate) fn admin_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"request":"status"}"#,
        r#"{"request":"set","changes":["lease-floor=200ms","lease-factor=12"]}"#,
        r#"{"request":"order","client":3,"order":{"weight":2.0}}"#,
        r#"{"request":"order","client":3,"order":{"limit":4096}}"#,
        r#"{"request":"order","client":3,"order":"swap_out"}"#,
        r#"{"response":"error","why":"no"}"#,
    ]
    .map(|line| line.as_bytes().to_vec())
    .to_vec()
}

/// One word: as everything that a word can be.
pub(crate) fn words(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = value::bytes(text);
    let _ = value::some_bytes(text);
    if let Ok(duration) = value::duration(text) {
        let shown = value::show(duration);
        assert!(value::duration(&shown).is_ok(), "`{text}` is shown as `{shown}`, which cannot be read");
    }
    let _ = value::factor(text);
    let _ = value::socket_path(text);
    let _ = value::node_name(text);
    let _ = nvshare_agent::pods::server(text);
    let _ = nvshare_agent::log::filter(text);
    let _ = quantity::bytes(text);
    let _ = text.parse::<Priority>();
    if let Ok(weight) = text.parse::<Weight>() {
        assert!((0.01..=100.0).contains(&weight.value()), "{text}");
    }
    if let Ok(who) = text.parse::<Who>() {
        assert!(who.to_string().parse::<Who>().is_ok(), "{who}");
    }
    if let Ok(change) = change::read(text) {
        let shown = change.to_string();
        assert!(change::read(&shown).is_ok(), "`{text}` is shown as `{shown}`, which cannot be read");
    }
}

/// Good ones.
pub(crate) fn word_seeds() -> Vec<Vec<u8>> {
    [
        "512M",
        "1.5T",
        "200ms",
        "2m",
        "40",
        "/run/a.sock",
        "node-1",
        "https://10.0.0.1:6443",
        "info,nvshare=debug",
        "8Gi",
        "1.5e9",
        "8589934592000m",
        "high",
        "0.5",
        "pid:1234",
        "3",
        "lease-floor=200ms",
        "reserve=1G",
        "log=debug",
    ]
    .map(|word| word.as_bytes().to_vec())
    .to_vec()
}

/// A configuration file.
pub(crate) fn config(text: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text).expect("a file is written");
    let line = vec![OsString::from("nvshare-agent")];
    if let Err(error) = file::parse(line, file.path()) {
        assert!(!error.to_string().is_empty());
    }
}

/// Keys of each kind.
pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    [
        "lease-floor = \"200ms\"\nreserve = \"64M\"\nno-uprobes = true\n",
        "lease-factor = 40\nlisten = \"127.0.0.1:9100\"\nlibcuda = [\"/a\", \"/b\"]\n",
        "shares = 4\nlog = \"debug\"\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
