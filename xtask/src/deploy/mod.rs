//! `cargo xtask deploy render`: prints an overlay of `deploy/` with version and image filled in. The manifests are put
//! together by kubectl's own kustomize, over a small kustomization written for the occasion; the alerts come from
//! `dashboards/alerts.yaml`, where they are written once for every kind of Prometheus.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use crate::command::root;
use crate::dist;

/// The image's name in the base.
const IMAGE: &str = "nvshare-agent";
/// What the alerts say of where the documents are, until somebody knows better.
const DOCUMENTS: &str = "https://nvshare.example.com/";

#[derive(Subcommand)]
pub(crate) enum Deploy {
    /// Print the manifests: `cargo xtask deploy render --image registry.example.com/nvshare-agent | kubectl apply -f -`
    Render(Render),
}

#[derive(Args, Clone)]
pub(crate) struct Render {
    /// The release: the image's tag unless --image has one, and a label. Another one than this checkout's needs an --image
    /// with tag or digest
    #[arg(long, default_value = dist::version(), value_parser = version)]
    pub(crate) version: String,
    /// Where the image is: NAME, NAME:TAG or NAME@sha256:DIGEST [default: what the overlay says]
    #[arg(long, value_parser = image)]
    pub(crate) image: Option<String>,
    /// Which of deploy/overlays.
    #[arg(long, default_value = "default")]
    pub(crate) overlay: String,
    /// Also print dashboards/alerts.yaml as a PrometheusRule of the Prometheus Operator
    #[arg(long)]
    pub(crate) with_rules: bool,
    /// The address under which people read this repository's files: the alerts link to docs/runbook.md there
    #[arg(long, value_name = "URL", default_value = DOCUMENTS, value_parser = documents, requires = "with_rules")]
    pub(crate) documents: String,
}

/// `cargo xtask deploy ...`.
pub(crate) fn run(deploy: &Deploy) -> Result<()> {
    match deploy {
        Deploy::Render(options) => {
            print!("{}", render(options)?);
            Ok(())
        }
    }
}

/// The manifests.
fn render(options: &Render) -> Result<String> {
    let overlays = overlays()?;
    ensure!(
        overlays.contains(&options.overlay),
        "there is no overlay `{}`: expected one of {}",
        options.overlay,
        overlays.into_iter().collect::<Vec<_>>().join(", ")
    );
    let exact = options.image.as_ref().is_some_and(|image| is_exact(image));
    ensure!(
        options.version == dist::version() || exact,
        "--version {} is not the release of this checkout, {}, and a tag changes no library: check that release out, or \
         name the image that was built from it with its tag or digest (--image NAME:TAG)",
        options.version,
        dist::version()
    );
    let directory = root().join("target/deploy");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let directory = tempfile::tempdir_in(&directory)?;
    // An overlay that names an image of its own keeps it.
    let images = match options.image {
        None => format!("images: [{{name: {IMAGE}, newTag: \"{}\"}}]\n", options.version),
        Some(_) => String::new(),
    };
    // Kustomize takes no absolute paths.
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         bases: [../../../deploy/overlays/{}]\npatchesStrategicMerge: [version.yaml]\n{images}",
        options.overlay
    );
    fs::write(directory.path().join("kustomization.yaml"), kustomization)?;
    fs::write(directory.path().join("version.yaml"), patch(options))?;
    let manifests = kustomize(directory.path())?;
    if options.with_rules {
        Ok(format!("{manifests}---\n{}", rules(&options.documents)?))
    } else {
        Ok(manifests)
    }
}

/// The alerts, as the Prometheus Operator takes them.
fn rules(documents: &str) -> Result<String> {
    let file = root().join("dashboards/alerts.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut rule = String::from(
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: nvshare-agent\n  namespace: \
         nvshare-system\n  labels: {app.kubernetes.io/name: nvshare}\nspec:\n",
    );
    for line in text.replace(DOCUMENTS, documents).lines().filter(|line| !line.is_empty()) {
        let _ = writeln!(rule, "  {line}");
    }
    Ok(rule)
}

/// What is changed in the DaemonSet. The image too: old kustomize's `images` finds none that has a digest.
fn patch(options: &Render) -> String {
    let label = format!("{{app.kubernetes.io/version: \"{}\"}}", options.version);
    let containers = options.image.as_ref().map_or(String::new(), |image| {
        let image = if is_exact(image) { image.clone() } else { format!("{image}:{}", options.version) };
        format!(
            "    spec:\n      initContainers:\n      - {{name: install-shim, image: \"{image}\"}}\n      containers:\n      \
             - {{name: agent, image: \"{image}\"}}\n"
        )
    });
    format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata:\n  name: nvshare-agent\n  namespace: nvshare-system\n  \
         labels: {label}\nspec:\n  template:\n    metadata:\n      labels: {label}\n{containers}"
    )
}

/// Whether an image has a tag or a digest.
fn is_exact(image: &str) -> bool {
    image.contains('@') || split_tag(image).1.is_some()
}

/// Name and tag. A colon before the last slash is that of the registry's port.
fn split_tag(image: &str) -> (&str, Option<&str>) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

/// The overlays there are.
fn overlays() -> Result<BTreeSet<String>> {
    let directory = root().join("deploy/overlays");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// `kubectl kustomize`. Old and new ones have no way of putting manifests together in common that today's does not call
/// old: what it says on stderr is shown only where it fails.
fn kustomize(directory: &Path) -> Result<String> {
    let output = match Command::new("kubectl").arg("kustomize").arg(directory).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "kubectl is not in PATH: it puts the manifests together (Debian: apt-get install kubernetes-client; else \
             https://kubernetes.io/docs/tasks/tools/)"
        ),
        Err(error) => return Err(error).context("cannot start kubectl"),
    };
    ensure!(
        output.status.success(),
        "kubectl kustomize {} failed: {}",
        directory.display(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn version(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let ends = [text.bytes().next(), text.bytes().last()];
    // A tag may have 128 bytes, a label 63.
    if text.len() <= 63
        && text.bytes().all(good)
        && ends.iter().flatten().all(u8::is_ascii_alphanumeric)
        && !text.is_empty()
    {
        return Ok(text.to_owned());
    }
    Err("expected what an image's tag and a label can be, such as 0.1.0: letters, digits, `_`, `.` and `-`"
        .to_owned())
}

fn documents(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:~%".contains(&byte);
    if rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(plain)) {
        return Ok(format!("{}/", text.trim_end_matches('/')));
    }
    Err("expected the address in front of docs/runbook.md, such as https://git.example.com/nvshare/blob/main/"
        .to_owned())
}

fn image(text: &str) -> Result<String, String> {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = split_tag(name);
    let of = |text: &str, also: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
    };
    let sha = |digest: &str| {
        digest
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if of(path, b"._-/:") && tag.is_none_or(|tag| of(tag, b"_.-")) && digest.is_none_or(sha) {
        return Ok(text.to_owned());
    }
    Err("expected NAME, NAME:TAG or NAME@sha256:DIGEST, such as registry.example.com/nvshare-agent:0.1.0"
        .to_owned())
}

#[cfg(test)]
mod tests;
