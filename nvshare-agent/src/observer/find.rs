//! Which processes use which libcuda files: by a look at all of them.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

/// Whether a file of this name is taken for the CUDA driver's library: `libcuda.so`, `libcuda.so.1`,
/// `libcuda.so.550.163.01`; not `libcudart.so`.
pub(super) fn is_libcuda(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with('/')
        && name.strip_prefix("libcuda.so").is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The file's name, seen from here: through the root of the process that knows it by `path`.
pub(super) fn through(pid: u32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

/// Looks at every process. `found` is asked once for each file, and again with another process that maps the same one
/// if it answers that it could not look at it.
pub(super) fn scan(mut found: impl FnMut(u32, &str) -> bool) -> std::io::Result<()> {
    let mut known = HashSet::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Processes come and go, and kernel threads have none.
        let Ok(maps) = fs::read(format!("/proc/{pid}/maps")) else { continue };
        for (file, path) in libraries(&String::from_utf8_lossy(&maps)) {
            if !known.contains(&file) && found(pid, path) {
                known.insert(file);
            }
        }
    }
    Ok(())
}

/// The libcuda files in the text of `/proc/PID/maps`: device and inode as one text, and the name.
fn libraries(maps: &str) -> Vec<(String, &str)> {
    let mut libraries: Vec<(String, &str)> = Vec::new();
    for line in maps.lines().filter(|line| line.contains("/libcuda.so")) {
        // address permissions offset device inode   path
        let mut fields = line.splitn(6, ' ');
        let (Some(device), Some(inode), Some(path)) = (fields.nth(3), fields.next(), fields.next()) else {
            continue;
        };
        let path = path.trim_start();
        let file = format!("{device} {inode}");
        if is_libcuda(path)
            && !path.ends_with(" (deleted)")
            && libraries.iter().all(|(known, _)| *known != file)
        {
            libraries.push((file, path));
        }
    }
    libraries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drivers_library_counts() {
        for yes in ["/usr/lib/libcuda.so.1", "/x/libcuda.so", "/x/libcuda.so.550.163.01"] {
            assert!(is_libcuda(yes), "{yes}");
        }
        for no in
            ["/usr/lib/libcudart.so.12", "/x/libcuda.so-old", "libcuda.so.1", "[vdso]", "/x/libcuda.socket"]
        {
            assert!(!is_libcuda(no), "{no}");
        }
    }

    #[test]
    fn a_process_names_each_of_its_libraries_once() {
        let maps = "\
7f00-7f01 r--p 00000000 fe:01 1234                       /usr/lib/x86_64-linux-gnu/libcuda.so.550.1
7f01-7f02 r-xp 00001000 fe:01 1234                       /usr/lib/x86_64-linux-gnu/libcuda.so.550.1
7f02-7f03 r-xp 00001000 fe:01 77                         /opt/my libs/libcuda.so.1
7f03-7f04 r-xp 00001000 fe:01 78                         /opt/libcuda.so.1 (deleted)
7f04-7f05 rw-p 00000000 00:00 0                          [heap]
";
        let expected = [
            ("fe:01 1234".to_owned(), "/usr/lib/x86_64-linux-gnu/libcuda.so.550.1"),
            ("fe:01 77".to_owned(), "/opt/my libs/libcuda.so.1"),
        ];
        assert_eq!(libraries(maps), expected);
    }
}
