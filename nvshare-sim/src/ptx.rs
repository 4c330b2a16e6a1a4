//! What the simulator needs to know of PTX text: the names of entries and the layout of their parameters.

/// An entry and where its parameters lie in the parameter buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// Its parameters in order.
    pub(crate) parameters: Vec<Parameter>,
}

/// One parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// Where it begins.
    pub(crate) offset: usize,
    /// How long it is.
    pub(crate) size: usize,
}

/// No kernel has more bytes of parameters (since CUDA 12.1; before, an eighth of it).
const MOST_PARAMETERS: usize = 32_764;

/// All entries of a text; `None` if it is not PTX.
pub(crate) fn parse(text: &str) -> Option<Vec<Entry>> {
    let text = without_comments(text);
    if !text.contains(".version") || !text.contains(".target") {
        return None;
    }
    text.split(".entry").skip(1).map(entry).collect()
}

fn entry(text: &str) -> Option<Entry> {
    let name: String = text.trim_start().chars().take_while(|c| is_name(*c)).collect();
    if name.is_empty() {
        return None;
    }
    let rest = text.trim_start()[name.len()..].trim_start();
    let mut parameters = Vec::new();
    if let Some(list) = rest.strip_prefix('(') {
        let (list, _) = list.split_once(')')?;
        let mut end = 0;
        for declaration in list.split(',').map(str::trim).filter(|declaration| !declaration.is_empty()) {
            let (size, alignment) = layout(declaration)?;
            let offset = usize::checked_next_multiple_of(end, alignment)?;
            parameters.push(Parameter { offset, size });
            end = offset.checked_add(size).filter(|end| *end <= MOST_PARAMETERS)?;
        }
    }
    Some(Entry { name, parameters })
}

/// Size and alignment of `.param .u64 x`, `.param .align 8 .b8 x[24]`, `.param .u64 .ptr .global .align 16 x`.
fn layout(declaration: &str) -> Option<(usize, usize)> {
    let mut words = declaration.split_whitespace();
    let (mut element, mut alignment) = (None, None);
    // `.align` says something about the parameter itself only before `.ptr`.
    let mut pointer = false;
    while let Some(word) = words.next() {
        match word {
            ".ptr" => pointer = true,
            ".align" => {
                let value: usize = words.next()?.parse().ok()?;
                if !pointer {
                    alignment = Some(value);
                }
            }
            _ if element.is_none() => element = size_of_type(word),
            _ => {}
        }
    }
    let element = element?;
    let count = match declaration.split_once('[') {
        Some((_, rest)) => rest.split_once(']')?.0.trim().parse().ok()?,
        None => 1,
    };
    Some((element.checked_mul(count)?, alignment.unwrap_or(element).max(1)))
}

fn size_of_type(word: &str) -> Option<usize> {
    let digits = word.strip_prefix('.')?.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    match digits {
        "8" => Some(1),
        "16" => Some(2),
        "32" | "16x2" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let line = rest.find("//").unwrap_or(rest.len());
        let block = rest.find("/*").unwrap_or(rest.len());
        let at = line.min(block);
        out.push_str(&rest[..at]);
        if at == rest.len() {
            return out;
        }
        let end = if line < block { "\n" } else { "*/" };
        out.push(' ');
        let Some(found) = rest[at + 2..].find(end) else { return out };
        rest = &rest[at + 2 + found + if line < block { 0 } else { 2 }..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_the_layout_of_their_parameters_are_found() {
        let text = ".version 7.0 .target sm_70 .address_size 64\n\
            .func (.reg .b64 %v) helper(.reg .b64 %x) { ret; }\n\
            // .entry commented(\n /* .entry gone( */\n\
            .visible .entry one(.param .u64 a, .param .u32 b,\n .param .align 8 .b8 c[20]) { ret; }\n\
            .entry two() { ret; }\n .weak .entry three { ret; }\n\
            .visible .entry four(.param .u8 a, .param .u64 .ptr .global .align 128 p) { ret; }";
        let entries = parse(text).unwrap();
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["one", "two", "three", "four"]);
        let places = |index: usize| -> Vec<_> {
            entries[index].parameters.iter().map(|parameter| (parameter.offset, parameter.size)).collect()
        };
        assert_eq!(places(0), [(0, 8), (8, 4), (16, 20)]);
        assert!(places(1).is_empty() && places(2).is_empty());
        assert_eq!(places(3), [(0, 1), (8, 8)]);
    }

    #[test]
    fn what_is_not_ptx_is_refused() {
        for wild in ["x[18446744073709551615]", ".align 18446744073709551615 y, .param .u64 x", "x[4096]"] {
            let text = format!(
                ".version 7.0\n.target sm_70\n.visible .entry k(.param .u64 a, .param .u64 {wild}) {{ ret; }}"
            );
            assert_eq!(parse(&text), None, "{wild}");
        }
        assert_eq!(parse("int main() {}"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse(".version 7.0 .target sm_70 .entry bad(.param .what x) {}"), None);
    }
}
