//! Every overlay renders, and what it renders is what Kubernetes takes and what the design asks for. Skipped with a loud
//! line where kubectl, or Python's packages, cannot be had.

use std::path::PathBuf;

use super::*;
use crate::python;

/// The validator, with the schemas of every release of Kubernetes, and an interpreter for policies' expressions.
const PACKAGES: [&str; 2] = ["kubernetes-validate==1.37.0", "cel-python==0.5.0"];
/// The oldest release with everything in the manifests, and a recent one.
const RELEASES: [&str; 2] = ["1.30", "1.37"];

fn options(overlay: &str) -> Render {
    Render { version: "9.8.7".to_owned(), image: None, overlay: overlay.to_owned() }
}

/// The manifests, or a loud line.
fn rendered(options: &Render) -> Option<String> {
    if Command::new("kubectl").arg("help").output().is_err() {
        eprintln!("SKIPPED: no kubectl to render with (Debian: apt-get install kubernetes-client)");
        return None;
    }
    Some(render(options).unwrap())
}

fn python_programs() -> Option<PathBuf> {
    python::programs("kubernetes", &PACKAGES)
        .inspect_err(|why| eprintln!("SKIPPED: no {}: {why:#}", PACKAGES.join(", no ")))
        .ok()
}

/// What the validator says of a text.
fn validate(programs: &Path, manifests: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    fs::write(file.path(), manifests)?;
    let mut command = Command::new(programs.join("kubernetes-validate"));
    for release in RELEASES {
        command.args(["--kubernetes-version", release]);
    }
    python::quiet(command.args(["--strict", "--no-warn"]).arg(file.path()))
}

#[test]
fn every_overlay_is_accepted_strictly() {
    let Some(programs) = python_programs() else { return };
    for overlay in overlays().unwrap() {
        let Some(manifests) = rendered(&options(&overlay)) else { return };
        validate(&programs, &manifests).unwrap_or_else(|error| panic!("{overlay}: {error:#}"));
        // The validator sees a wrong word where there is one.
        for (right, wrong) in [("hostPID:", "hostPid:"), ("validationActions:", "actions:")] {
            let broken = manifests.replace(right, wrong);
            assert!(
                broken != manifests && validate(&programs, &broken).is_err(),
                "{overlay}: {wrong} is accepted"
            );
        }
    }
}

#[test]
fn version_and_image_are_filled_in_wherever_they_belong() {
    for overlay in overlays().unwrap() {
        let image = |image: &str| Render { image: Some(image.to_owned()), ..options(&overlay) };
        let digest = format!("r.example.com:5000/x@sha256:{}", "0123456789abcdef".repeat(4));
        for (given, expected) in [
            ("r.example.com:5000/x", "r.example.com:5000/x:9.8.7"),
            ("r.example.com/x:1", "r.example.com/x:1"),
            (&digest, &digest),
        ] {
            let Some(manifests) = rendered(&image(given)) else { return };
            let images: Vec<&str> = manifests.lines().filter(|line| line.contains("image:")).collect();
            assert!(
                images.len() == 2 && images.iter().all(|line| line.ends_with(expected)),
                "{overlay}: {images:?}"
            );
            let labels = manifests.matches("app.kubernetes.io/version: 9.8.7").count();
            assert_eq!(labels, 2, "{overlay}: on the DaemonSet and on its pods");
        }
    }
    let Some(manifests) = rendered(&options("default")) else { return };
    assert_eq!(manifests.matches("image: nvshare-agent:9.8.7").count(), 2);
    // Applied as it lies here, the base wants the release that is built here.
    let base = kustomize(&root().join("deploy/base")).unwrap();
    assert_eq!(base.matches(&format!("image: nvshare-agent:{}\n", dist::version())).count(), 2, "{base}");
    let Some(manifests) = rendered(&options("production")) else { return };
    assert_eq!(
        manifests.matches("image: registry.example.com/nvshare-agent@sha256:").count(),
        2,
        "{manifests}"
    );
}

#[test]
fn no_overlay_limits_the_memory_that_shadows_are_charged_to() {
    for overlay in overlays().unwrap() {
        let Some(manifests) = rendered(&options(&overlay)) else { return };
        assert!(!manifests.contains("limits:"), "{overlay}");
        assert!(manifests.contains("resource: requests.memory"), "{overlay}: the request is the budget");
    }
}

#[test]
fn the_unprivileged_overlay_has_no_privileged_container() {
    let Some(manifests) = rendered(&options("unprivileged")) else { return };
    assert!(!manifests.contains("privileged: true"), "{manifests}");
    assert_eq!(manifests.matches("privileged: false").count(), 2, "the init container and the agent");
    assert_eq!(manifests.matches("allowPrivilegeEscalation: false").count(), 2);
    assert!(!manifests.contains("SYS_ADMIN"));
    let Some(manifests) = rendered(&options("default")) else { return };
    assert_eq!(manifests.matches("privileged: true").count(), 1, "the agent alone");
}

#[test]
fn what_cannot_be_rendered_is_refused_with_what_was_expected() {
    let error = render(&options("staging")).unwrap_err().to_string();
    assert!(error.contains("`staging`") && error.contains("default, production, unprivileged"), "{error}");
    for wrong in ["", "1 2", "1.0\nkind: Pod", "-1", &"1".repeat(64)] {
        assert!(version(wrong).unwrap_err().contains("0.1.0"), "{wrong}");
    }
    for wrong in ["", "x y", "x:", "x@sha256:12", "x@", "x:a:b c"] {
        assert!(image(wrong).unwrap_err().contains("NAME:TAG"), "{wrong}");
    }
}

#[test]
fn pods_with_impossible_annotations_are_refused_with_the_reason() {
    let Some(programs) = python_programs() else { return };
    let script = root().join("xtask/src/deploy/admission.py");
    let policy = root().join("deploy/admission/policy.yaml");
    python::quiet(Command::new(programs.join("python")).arg(script).arg(policy)).unwrap();
}
