//! `nvshare-agent config`: the configuration in force and where each value comes from.

use serde_json::{Map, Value, json};

use super::file::{Origin, Source};

/// As a table, or as JSON.
pub fn show(origins: &[Origin], json: bool) -> String {
    if json {
        let entry = |origin: &Origin| {
            (origin.name.clone(), json!({"value": origin.value, "source": source(&origin.source)}))
        };
        let all: Map<String, Value> = origins.iter().map(entry).collect();
        return format!("{:#}\n", Value::from(all));
    }
    let rows: Vec<[String; 3]> = origins
        .iter()
        .map(|origin| [origin.name.clone(), text(&origin.value), source(&origin.source)])
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    let lines =
        rows.iter().map(|[name, value, source]| format!("{name:first$}  {value:second$}  {source}\n"));
    lines.collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn source(source: &Source) -> String {
    match source {
        Source::Flag => "flag".to_owned(),
        Source::Environment(variable) => format!("environment {variable}"),
        Source::File(path) => format!("file {}", path.display()),
        Source::Default => "default".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_shown_with_where_it_comes_from() {
        let origin = |name: &str, value, source| Origin { name: name.to_owned(), value, source };
        let origins = [
            origin("reserve", json!("64M"), Source::File("/etc/nvshare/agent.toml".into())),
            origin("listen", json!("0.0.0.0:9430"), Source::Environment("NVSHARE_AGENT_LISTEN".to_owned())),
            origin("capacity", Value::Null, Source::Default),
        ];
        assert_eq!(
            show(&origins, false),
            "reserve   64M           file /etc/nvshare/agent.toml\n\
             listen    0.0.0.0:9430  environment NVSHARE_AGENT_LISTEN\n\
             capacity  -             default\n"
        );
        let json: Value = serde_json::from_str(&show(&origins, true)).unwrap();
        assert_eq!(json["reserve"], json!({"value": "64M", "source": "file /etc/nvshare/agent.toml"}));
        assert_eq!(json["capacity"]["value"], Value::Null);
    }
}
