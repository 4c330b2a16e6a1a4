//! The series of single clients, written as text at once. A thousand clients have some fifty thousand samples with seven
//! labels each: as the metrics of Prometheus' crate they are a million small strings, and four times the budget of a
//! scrape. What stands here is what the crate's encoder would write (see the test).

use std::fmt::Write;

use prometheus::proto::MetricType;

use super::series::{Definition, Series};

/// How many labels name a client. They come first.
pub(super) const NAMES: usize = 5;

/// What names a client, as it stands in each of its samples.
pub(super) struct Who(String);

impl Who {
    /// The values of `client`, `namespace`, `pod`, `container` and `process`.
    pub(super) fn new(values: [&str; NAMES]) -> Who {
        let mut text = String::new();
        labels(&mut text, &Series::ClientInfo.definition().labels[..NAMES], &values);
        Who(text)
    }
}

/// The samples of each series, a line each.
pub(super) struct Lines(Vec<String>);

impl Lines {
    /// None. `sizes` are those of the last page, or nothing: growing costs as much as writing.
    pub(super) fn new(sizes: &[usize]) -> Lines {
        let sizes = sizes.iter().copied().chain(std::iter::repeat(0));
        Lines(Series::TABLE.iter().zip(sizes).map(|(_, size)| String::with_capacity(size)).collect())
    }

    /// How long the lines of each series are.
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.0.iter().map(String::len).collect()
    }

    /// One more sample; `more` are the values of the labels after those that name the client.
    pub(super) fn put(&mut self, series: Series, who: &Who, more: &[&str], value: f64) {
        let Definition { name, labels: names, .. } = series.definition();
        debug_assert_eq!(names.len(), NAMES + more.len(), "{series:?} has the labels {names:?}");
        let text = &mut self.0[series as usize];
        text.push_str(name);
        text.push('{');
        text.push_str(&who.0);
        if !more.is_empty() {
            text.push(',');
            labels(text, &names[NAMES..], more);
        }
        text.push_str("} ");
        number(text, value);
        text.push('\n');
    }

    /// Adds all of it to a page in Prometheus' text format.
    pub(super) fn write(self, page: &mut String) {
        // Heads too: 256 bytes each are enough.
        page.reserve(self.0.iter().map(|lines| lines.len() + 256).sum());
        for (Definition { name, help, kind, .. }, lines) in Series::TABLE.iter().zip(self.0) {
            if lines.is_empty() {
                continue;
            }
            let kind = if *kind == MetricType::COUNTER { "counter" } else { "gauge" };
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
            page.push_str(&lines);
        }
    }
}

/// `name="value"` for each, with commas between.
fn labels(text: &mut String, names: &[&str], values: &[&str]) {
    for (index, (name, value)) in names.iter().zip(values).enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for part in value.split_inclusive(['\\', '"', '\n']) {
            let (plain, special) = match part.as_bytes().last() {
                Some(b'\\') => (&part[..part.len() - 1], "\\\\"),
                Some(b'"') => (&part[..part.len() - 1], "\\\""),
                Some(b'\n') => (&part[..part.len() - 1], "\\n"),
                _ => (part, ""),
            };
            text.push_str(plain);
            text.push_str(special);
        }
        text.push('"');
    }
}

/// Most are counts, for which there is a shorter way than that of fractions.
fn number(text: &mut String, value: f64) {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let _ = if value.fract() == 0.0 && (0.0..EXACT).contains(&value) && value.is_sign_positive() {
        write!(text, "{}", value as u64)
    } else {
        write!(text, "{value}")
    };
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;
    use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily};
    use proptest::prelude::*;

    use super::*;

    /// What Prometheus' crate writes for one sample.
    fn theirs(series: Series, values: &[&str], value: f64) -> String {
        let definition = series.definition();
        let pairs = definition.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        if definition.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        let mut family = MetricFamily::default();
        family.set_name(definition.name.to_owned());
        family.set_help(definition.help.to_owned());
        family.set_field_type(definition.kind);
        family.set_metric(vec![metric]);
        TextEncoder::new().encode_to_string(&[family]).unwrap()
    }

    #[test]
    fn the_series_of_clients_begin_with_what_names_a_client() {
        let names = &Series::ClientInfo.definition().labels[..NAMES];
        let clients = Series::TABLE.iter().filter(|series| series.name.starts_with("nvshare_client_"));
        for series in clients {
            assert_eq!(&series.labels[..NAMES], names, "{}", series.name);
            assert_ne!(series.kind, MetricType::HISTOGRAM, "{}", series.name);
        }
    }

    proptest! {
        #[test]
        fn a_sample_is_written_as_the_library_writes_it(
            names in prop::array::uniform5("[a-z\"\\\\\n\u{e9}]{0,8}"),
            reason in "[ -~\n]{0,12}",
            value in prop_oneof![
                any::<f64>(), (0_u64..1 << 60).prop_map(|count| count as f64), Just(f64::INFINITY),
                Just(f64::NEG_INFINITY), Just(f64::NAN), Just(-0.0), Just(9_007_199_254_740_992.0)
            ],
        ) {
            let who = names.each_ref().map(String::as_str);
            for (series, more) in [
                (Series::ClientWaiting, vec![]),
                (Series::ClientCopied, vec!["out"]),
                (Series::ClientUnswappable, vec!["0", "GPU-1", reason.as_str()]),
            ] {
                let mut lines = Lines::new(&[]);
                lines.put(series, &Who::new(who), &more, value);
                let mut ours = String::new();
                lines.write(&mut ours);
                let all: Vec<&str> = who.iter().copied().chain(more.iter().copied()).collect();
                prop_assert_eq!(ours, theirs(series, &all, value));
            }
        }
    }
}
