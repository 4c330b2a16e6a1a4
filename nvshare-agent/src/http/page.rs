//! The status page: one document made of the files beside this one, which fetches nothing but the agent's own state.

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};

const DOCUMENT: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// The page, with a policy that lets nothing run or load but what is in it.
pub(super) fn page() -> Response {
    let nonce = nonce();
    let page = DOCUMENT
        .replace("{nonce}", &nonce)
        .replace("{release}", env!("CARGO_PKG_VERSION"))
        .replace("{style}", STYLE)
        .replace("{script}", SCRIPT);
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(page)).into_response()
}

/// A number used once, so that only the style and the script of this answer count.
fn nonce() -> String {
    let mut bytes = [0_u8; 16];
    // The kernel's generator is up long before the agent is; a page without it would only lack its style.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:032x}", u128::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_page_holds_everything_and_names_nothing_outside() {
        let answer = page();
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let nonce = policy.split_once("script-src 'nonce-").unwrap().1.split_once('\'').unwrap().0;
        assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "the style and the script");
        assert!(text.contains(STYLE) && text.contains(SCRIPT) && policy.starts_with("default-src 'none'"));
        let namespaces = text.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http://", "https://", "url(", "@import"] {
            assert!(!namespaces.contains(outside), "the page names something outside: {outside}");
        }
    }

    #[test]
    fn text_of_clients_is_never_read_as_html() {
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(way), "{way} in the script");
        }
    }

    /// The contrast between two colours, as WCAG 2 has it.
    fn contrast(one: &str, other: &str) -> f64 {
        let luminance = |colour: &str| {
            let part = |at: usize| {
                let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
                if value <= 0.039_28 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
            };
            0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5) + 0.05
        };
        let (one, other) = (luminance(one), luminance(other));
        one.max(other) / one.min(other)
    }

    #[test]
    fn every_text_can_be_read_on_its_ground_in_light_and_in_dark() {
        let (light, dark) = STYLE.split_once("@media (prefers-color-scheme: dark)").unwrap();
        let colour = |name: &str, scheme: &str| {
            let of = |style: &str| {
                let (_, value) = style.split_once(&format!("{name}: "))?;
                Some(value[..7].to_owned()).filter(|value| value.starts_with('#'))
            };
            let chosen = if scheme == "dark" { of(dark) } else { None };
            chosen.or_else(|| of(light)).unwrap_or_else(|| panic!("no {name}"))
        };
        for scheme in ["light", "dark"] {
            for ground in ["--ground", "--raised"] {
                for text in ["--text", "--quiet", "--focus", "--good", "--warn", "--bad"] {
                    let contrast = contrast(&colour(text, scheme), &colour(ground, scheme));
                    assert!(contrast >= 4.5, "{text} on {ground}, {scheme}: {contrast:.2}");
                }
            }
        }
        let shares = SCRIPT.split_once("COLOURS = [").unwrap().1.split_once(']').unwrap().0;
        for share in shares.split('"').filter(|text| text.starts_with('#')) {
            let contrast = contrast(share, &colour("--ink", "light"));
            assert!(contrast >= 4.5, "a client's number on {share}: {contrast:.2}");
        }
    }

    #[test]
    fn no_two_answers_share_a_nonce() {
        assert_ne!(nonce(), nonce());
    }
}
