//! Every overlay renders, and what it renders is what Kubernetes takes and what the design asks for. Skipped with a loud
//! line where kubectl, or Python's packages, cannot be had.

use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::python;

/// The validator, with the schemas of every release of Kubernetes, and an interpreter for policies' expressions.
const PACKAGES: [&str; 2] = ["kubernetes-validate==1.37.0", "cel-python==0.5.0"];
/// The oldest release with everything in the manifests, and a recent one.
const RELEASES: [&str; 2] = ["1.30", "1.37"];

fn options(overlay: &str) -> Render {
    Render {
        version: dist::version().to_owned(),
        image: None,
        overlay: overlay.to_owned(),
        with_rules: false,
        documents: DOCUMENTS.to_owned(),
    }
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

/// The API group of the Prometheus Operator, of whose kinds the validator knows nothing: tests here look at them.
const OPERATOR: &str = "apiVersion: monitoring.coreos.com/v1";

/// What the validator says of a text, the Prometheus Operator's kinds left out.
fn validate(programs: &Path, manifests: &str) -> Result<()> {
    let known: Vec<&str> = manifests.split("\n---\n").filter(|text| !text.starts_with(OPERATOR)).collect();
    let manifests = known.join("\n---\n");
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
fn every_manifest_in_the_documents_is_accepted_strictly() {
    let Some(programs) = python_programs() else { return };
    let text = fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
    let examples: Vec<&str> =
        text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        validate(&programs, example).unwrap_or_else(|error| panic!("{example}{error:#}"));
    }
}

#[test]
fn version_and_image_are_filled_in_wherever_they_belong() {
    for overlay in overlays().unwrap() {
        let image = |version: &str, image: &str| Render {
            version: version.to_owned(),
            image: Some(image.to_owned()),
            ..options(&overlay)
        };
        let (here, tagged) = (dist::version(), format!("r.example.com:5000/x:{}", dist::version()));
        let digest = format!("r.example.com:5000/x@sha256:{}", "0123456789abcdef".repeat(4));
        for (version, given, expected) in [
            (here, "r.example.com:5000/x", tagged.as_str()),
            ("9.8.7", "r.example.com/x:1", "r.example.com/x:1"),
            ("9.8.7", &digest, &digest),
        ] {
            let Some(manifests) = rendered(&image(version, given)) else { return };
            let images: Vec<&str> = manifests.lines().filter(|line| line.contains("image:")).collect();
            assert!(
                images.len() == 2 && images.iter().all(|line| line.ends_with(expected)),
                "{overlay}: {images:?}"
            );
            let labels = manifests.matches(&format!("app.kubernetes.io/version: {version}")).count();
            assert_eq!(labels, 2, "{overlay}: on the DaemonSet and on its pods");
        }
    }
    let Some(manifests) = rendered(&options("default")) else { return };
    assert_eq!(manifests.matches(&format!("image: nvshare-agent:{}", dist::version())).count(), 2);
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

/// What is rendered, object by object.
fn objects(manifests: &str) -> Vec<Value> {
    let documents = manifests.split("\n---\n");
    documents
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")))
        .collect()
}

/// The one object of a kind.
fn the<'a>(kind: &str, objects: &'a [Value]) -> &'a Value {
    let mut all = objects.iter().filter(|object| object["kind"] == kind);
    let (first, second) = (all.next(), all.next());
    assert!(second.is_none(), "two of {kind}");
    first.unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn in_production_one_namespace_reaches_the_port_of_the_agents() {
    let Some(manifests) = rendered(&options("production")) else { return };
    let objects = objects(&manifests);
    let (policy, agents) = (&the("NetworkPolicy", &objects)["spec"], &the("DaemonSet", &objects)["spec"]);
    let labels = &agents["template"]["metadata"]["labels"];
    for (label, value) in policy["podSelector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(labels[label], *value, "it selects the agents");
    }
    let rules = policy["ingress"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    let who = serde_json::json!([
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]);
    assert_eq!(rules[0]["from"], who);
    let port = &agents["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!(rules[0]["ports"][0]["port"], port["name"]);
    // Nothing listens on the node itself.
    assert!(port["hostPort"].is_null() && agents["template"]["spec"]["hostNetwork"].is_null());
}

#[test]
fn the_prometheus_operator_is_told_of_the_agents_as_prometheus_would_be() {
    let Some(manifests) = rendered(&options("prometheus-operator")) else { return };
    let objects = objects(&manifests);
    let (monitor, agents) = (&the("PodMonitor", &objects)["spec"], &the("DaemonSet", &objects)["spec"]);
    assert_eq!(monitor["selector"], agents["selector"]);
    let [endpoint] = monitor["podMetricsEndpoints"].as_array().unwrap().as_slice() else {
        panic!("{monitor}")
    };
    assert_eq!(endpoint["port"], agents["template"]["spec"]["containers"][0]["ports"][0]["name"]);
    assert_eq!(endpoint["honorLabels"], true);
    let node = serde_json::json!([
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"}
    ]);
    assert_eq!(endpoint["relabelings"], node);
    // Only where it is wanted: a cluster without the operator refuses it.
    let Some(manifests) = rendered(&options("default")) else { return };
    assert!(!manifests.contains("monitoring.coreos.com"));
}

#[test]
fn the_rules_are_those_of_the_dashboards_with_links_that_lead_somewhere() {
    let plain = Render { with_rules: true, ..options("default") };
    let documents = documents("https://git.example.org/nvshare/blob/main").unwrap();
    let Some(manifests) = rendered(&plain) else { return };
    let Some(linked) = rendered(&Render { documents, ..plain }) else { return };
    let written = fs::read_to_string(root().join("dashboards/alerts.yaml")).unwrap();
    let written: Value = serde_saphyr::from_str(&written).unwrap();
    let objects = objects(&manifests);
    let rule = the("PrometheusRule", &objects);
    assert_eq!(rule["spec"], written);
    assert_eq!(rule["metadata"]["namespace"], "nvshare-system");
    let alerts = manifests.matches("- alert: ").count();
    assert!(alerts > 10);
    assert_eq!(
        manifests.matches("runbook_url: https://nvshare.example.com/docs/runbook.md#").count(),
        alerts
    );
    let address = "runbook_url: https://git.example.org/nvshare/blob/main/docs/runbook.md#";
    assert_eq!(linked.matches(address).count(), alerts);
}

#[test]
fn with_cdi_the_agent_writes_where_the_runtime_reads() {
    let Some(manifests) = rendered(&options("cdi")) else { return };
    let objects = objects(&manifests);
    let pod = &the("DaemonSet", &objects)["spec"]["template"]["spec"];
    let agent = &pod["containers"][0];
    let named = |list: &Value, name: &str| {
        list.as_array().unwrap().iter().find(|entry| entry["name"] == name).cloned().unwrap()
    };
    assert_eq!(named(&agent["env"], "NVSHARE_AGENT_PRELOAD")["value"], "cdi");
    let mount = serde_json::json!({"name": "cdi", "mountPath": "/var/run/cdi"});
    assert_eq!(named(&agent["volumeMounts"], "cdi"), mount, "writable");
    assert_eq!(named(&pod["volumes"], "cdi")["hostPath"]["path"], mount["mountPath"]);
}

#[test]
fn what_cannot_be_rendered_is_refused_with_what_was_expected() {
    let error = render(&options("staging")).unwrap_err().to_string();
    let all = "cdi, default, production, prometheus-operator, unprivileged";
    assert!(error.contains("`staging`") && error.contains(all), "{error}");
    // The library's directory on the node is named by the release that was built, whatever the tag says.
    for image in [None, Some("r.example.com:5000/x".to_owned())] {
        let error = render(&Render { version: "9.8.7".to_owned(), image, ..options("default") }).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("9.8.7") && error.contains(dist::version()), "{error}");
    }
    for wrong in ["", "1 2", "1.0\nkind: Pod", "-1", &"1".repeat(64)] {
        assert!(version(wrong).unwrap_err().contains("0.1.0"), "{wrong}");
    }
    for wrong in ["", "docs/", "https://", "https://x\n"] {
        assert!(documents(wrong).unwrap_err().contains("https://"), "{wrong}");
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
