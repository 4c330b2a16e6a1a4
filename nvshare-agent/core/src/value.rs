//! Sizes, durations and factors as people write them on a command line: `16G`, `200ms`, `40`.

use std::path::PathBuf;
use std::time::Duration;

use nvshare_common::bytes::Bytes;

/// The longest path that fits a Unix socket's address (`sun_path` holds 108 bytes, the last one zero).
const SOCKET_PATH_BYTES: usize = 107;

/// A size: a number, optionally with a fraction, and a unit. Units are powers of 1024, with or without `iB` or `B`.
pub fn bytes(text: &str) -> Result<Bytes, String> {
    let wrong = || "expected a size such as 512M, 16G or 1.5T (K, M, G, T are powers of 1024)".to_owned();
    let (number, unit) = split(text);
    let unit = unit.strip_suffix(['B', 'b']).unwrap_or(unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(wrong()),
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(1 << shift),
        Err(_) => number
            .parse::<f64>()
            .ok()
            .map(|fraction| fraction * (1_u64 << shift) as f64)
            .filter(|bytes| (0.0..u64::MAX as f64).contains(bytes))
            .map(|bytes| bytes as u64),
    };
    bytes.map(Bytes).ok_or_else(wrong)
}

/// A size that is not zero.
pub fn some_bytes(text: &str) -> Result<Bytes, String> {
    match bytes(text)? {
        Bytes::ZERO => Err("expected more than 0 bytes, such as 16G".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A duration of a microsecond or more: a number, optionally with a fraction, and a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration such as 200ms, 1.5s or 2m (units: us, ms, s, m, h)".to_owned();
    let (number, unit) = split(text);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * seconds;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    // No shorter one can be shown.
    if duration < Duration::from_micros(1) || duration > Duration::from_hours(24) {
        return Err("expected a duration of at least 1us and at most 24h".to_owned());
    }
    Ok(duration)
}

/// By how much a lease outlasts the switch that it pays for.
pub fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=10_000.0).contains(&factor) => Ok(factor),
        _ => Err(
            "expected a number from 1 to 10000, such as 40 (a switch then costs at most 1/40 of the time)"
                .to_owned(),
        ),
    }
}

/// The path of a Unix socket: absolute, so that it means the same wherever the agent is started, and short enough.
pub fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || path.parent().is_none_or(|parent| parent.as_os_str() == "/") {
        return Err(
            "expected an absolute path inside a directory of its own, such as /run/nvshare/agent.sock"
                .to_owned(),
        );
    }
    if text.len() > SOCKET_PATH_BYTES {
        let bytes = text.len();
        return Err(format!(
            "expected at most {SOCKET_PATH_BYTES} bytes (a limit of Unix sockets), not {bytes}"
        ));
    }
    Ok(path)
}

/// The name of a node in Kubernetes: it becomes part of a request.
pub fn node_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if text.is_empty() || text.len() > 253 || !text.chars().all(fits) {
        return Err(
            "expected the name of this node as Kubernetes has it (spec.nodeName of its pods), such as \
                    gpu-node-1.example.com"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// A duration as [`duration()`] reads it.
pub fn show(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{}s", (seconds * 1e3).round() / 1e3),
        seconds if seconds >= 1e-3 => format!("{}ms", (seconds * 1e6).round() / 1e3),
        seconds => format!("{}us", (seconds * 1e6).round()),
    }
}

/// The number, and what follows it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let written =
            [("4096", 4096), ("16G", 16 << 30), ("1.5GiB", 3 << 29), ("64 MiB", 64 << 20), ("2k", 2048)];
        for (text, expected) in written {
            assert_eq!(bytes(text), Ok(Bytes(expected)), "{text}");
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for text in ["", "G", "16X", "-1G", "1e99", "NaN", "inf", "99999999T", "16 G G", "1.2.3G"] {
            assert!(bytes(text).unwrap_err().contains("16G"), "{text}");
        }
        assert!(some_bytes("0G").unwrap_err().contains("more than 0"));
    }

    #[test]
    fn durations_need_a_unit_and_a_positive_length() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for text in ["200", "", "ms", "-1s", "0s", ".4us", "25h", "1w"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_shown_duration_reads_back() {
        for text in ["200ms", "1.5s", "250us", "3600s"] {
            assert_eq!(show(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn socket_paths_are_absolute_and_short() {
        assert!(socket_path("/run/nvshare/agent.sock").is_ok());
        for text in ["agent.sock", "/agent.sock", "", &format!("/run/{}", "x".repeat(110))] {
            assert!(socket_path(text).unwrap_err().contains("expected"), "{text}");
        }
    }
}
