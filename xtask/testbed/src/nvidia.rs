//! NVIDIA's own driver libraries, for tests that need no GPU: Debian's package `libcuda1` of several releases, unpacked
//! into the build directory and never part of anything. They can be loaded, looked up in and probed anywhere.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Artifacts;

/// The suites of Debian that carry different releases of the driver.
const SUITES: [&str; 4] = ["bookworm", "trixie", "sid", "experimental"];
const PACKAGE: &str = "libcuda1";

/// One of NVIDIA's libraries.
#[derive(Clone, Debug)]
pub struct NvidiaLibrary {
    /// Its release: `550.163.01`.
    pub version: String,
    /// A directory that holds it as `libcuda.so.1`.
    pub directory: PathBuf,
}

impl NvidiaLibrary {
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.directory.join("libcuda.so.1")
    }
}

/// NVIDIA's libraries, fetched the first time. `None`, said loudly, where they cannot be had.
///
/// # Panics
/// Where the build directory cannot be written.
pub fn nvidia_libraries() -> Option<Vec<NvidiaLibrary>> {
    let directory = Artifacts::find().directory().join("nvidia");
    fs::create_dir_all(&directory).expect("a directory for NVIDIA's libraries");
    // One fetches, the others wait.
    let lock = File::create(directory.join("lock")).expect("a lock file");
    lock.lock().expect("the lock on NVIDIA's libraries");
    let mut libraries = unpacked(&directory);
    if libraries.is_empty() {
        if let Err(why) = fetch(&directory) {
            eprintln!("SKIPPED: NVIDIA's own libraries cannot be fetched, nothing was tested on them: {why}");
            return None;
        }
        libraries = unpacked(&directory);
    }
    assert!(
        !libraries.is_empty(),
        "{PACKAGE} was unpacked into {} without a libcuda.so.1",
        directory.display()
    );
    Some(libraries)
}

fn unpacked(directory: &Path) -> Vec<NvidiaLibrary> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut libraries: Vec<NvidiaLibrary> = entries
        .filter_map(|entry| {
            let library =
                NvidiaLibrary { version: entry.file_name().into_string().ok()?, directory: entry.path() };
            library.path().is_file().then_some(library)
        })
        .collect();
    libraries.sort_by(|one, other| one.version.cmp(&other.version));
    libraries
}

/// By `apt-get`, with lists of its own: nothing of the machine's is changed, and root is not needed.
fn fetch(directory: &Path) -> Result<(), String> {
    let apt = directory.join("apt");
    for name in ["lists/partial", "cache/archives/partial", "debs"] {
        fs::create_dir_all(apt.join(name)).map_err(|error| error.to_string())?;
    }
    let sources = apt.join("sources.list");
    let (mirror, options) = configured_mirror().ok_or("no Debian mirror is configured")?;
    let lines = SUITES.map(|suite| format!("deb {options} {mirror} {suite} non-free"));
    fs::write(&sources, lines.join("\n") + "\n").map_err(|error| error.to_string())?;
    let with_lists = |program: &str| {
        let mut command = Command::new(program);
        for (name, value) in [
            ("Dir::Etc::SourceList", sources.clone()),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        command.current_dir(apt.join("debs"));
        command
    };
    output(with_lists("apt-get").args(["-qq", "update"]))?;
    let table = output(with_lists("apt-cache").args(["madison", PACKAGE]))?;
    let mut releases: Vec<String> = Vec::new();
    for version in table.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim) {
        let release = version.rsplit_once('-').map_or(version, |(release, _)| release).to_owned();
        if releases.contains(&release) {
            continue;
        }
        output(with_lists("apt-get").args(["-qq", "download", &format!("{PACKAGE}={version}")]))?;
        unpack(&apt, directory, &release)?;
        releases.push(release);
    }
    if releases.is_empty() {
        return Err(format!("{mirror} has no {PACKAGE}"));
    }
    Ok(())
}

/// Unpacks the one package that was just fetched.
fn unpack(apt: &Path, directory: &Path, release: &str) -> Result<(), String> {
    let say = |error: std::io::Error| error.to_string();
    let tree = apt.join(release);
    for package in fs::read_dir(apt.join("debs")).map_err(say)?.flatten() {
        output(Command::new("dpkg-deb").arg("--extract").arg(package.path()).arg(&tree))?;
        fs::remove_file(package.path()).map_err(say)?;
    }
    let library = find(&tree, &format!("libcuda.so.{release}"))
        .ok_or_else(|| format!("{PACKAGE} {release} holds no libcuda.so.{release}"))?;
    let place = directory.join(release);
    fs::create_dir_all(&place).map_err(say)?;
    fs::copy(library, place.join("libcuda.so.1")).map_err(say)?;
    fs::remove_dir_all(&tree).map_err(say)
}

fn find(tree: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(tree).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            find(&path, name)
        } else {
            (entry.file_name() == name && !path.is_symlink()).then_some(path)
        }
    })
}

/// The mirror of Debian that this machine uses, with the key its lists are signed by.
fn configured_mirror() -> Option<(String, String)> {
    let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]".to_owned();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| {
        let words =
            text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
        let mirror = words
            .filter(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
            .map(str::to_owned)
            .next()?;
        Some((mirror, signed.clone()))
    })
}

fn output(command: &mut Command) -> Result<String, String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&done.stderr).trim()))
}

/// The CUDA runtime as a static library, from the PyPI wheel that carries it, fetched the first time. `None`, said
/// loudly, where it cannot be had.
///
/// # Panics
/// Where the build directory cannot be written.
pub fn static_cudart() -> Option<PathBuf> {
    let directory = Artifacts::find().directory().join("cudart");
    fs::create_dir_all(&directory).expect("a directory for the CUDA runtime");
    let lock = File::create(directory.join("lock")).expect("a lock file");
    lock.lock().expect("the lock on the CUDA runtime");
    let library = directory.join("nvidia/cuda_runtime/lib/libcudart_static.a");
    if !library.is_file()
        && let Err(why) = fetch_cudart(&directory)
    {
        eprintln!("SKIPPED: the static CUDA runtime cannot be fetched, nothing was tested with it: {why}");
        return None;
    }
    assert!(library.is_file(), "{RUNTIME} holds no {}", library.display());
    Some(library)
}

/// The wheel of the newest runtime of CUDA 12 that drivers of 12.x run.
const RUNTIME: &str = "nvidia-cuda-runtime-cu12==12.9.79";

fn fetch_cudart(directory: &Path) -> Result<(), String> {
    let wheels = directory.join("wheels");
    output(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", RUNTIME, "--dest"])
            .arg(&wheels),
    )?;
    let mut found = fs::read_dir(&wheels).map_err(|error| error.to_string())?.flatten();
    let wheel = found.next().ok_or("pip downloaded nothing")?.path();
    output(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(wheel).arg(directory))?;
    Ok(())
}
