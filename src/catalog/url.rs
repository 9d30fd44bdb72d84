//! URLs as places of secrets: which parts may be a key, and texts without these parts.

/// What stands in a message in the place of a secret.
const HIDDEN: &str = "(hidden)";
/// Shortest part of a URL's path, and shortest other text, that counts as a secret: shorter ones are
/// words such as `mcp` and `v1`, which a message needs.
const PATH_PART_MIN: usize = 6;
const SECRET_MIN: usize = 4;

/// The parts of a URL in which a secret may stand: all but the scheme, the host and the port.
///
/// The URL may have variables that are not expanded; without `://` all of it counts.
pub(super) fn secret_parts(url: &str) -> Vec<&str> {
    let Some((_, rest)) = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return vec![url];
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    [user, path].into_iter().filter(|part| !part.is_empty()).collect()
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// Whether a password, or the value of a query parameter whose name is that of a key, is written
/// literally.
pub(super) fn has_literal_secret(url: &str, is_key: impl Fn(&str) -> bool) -> bool {
    let is_literal = |value: &str| !value.is_empty() && !value.contains("${");
    secret_parts(url).into_iter().any(|part| {
        let Some((_, query)) = part.split_once('?') else {
            let password = part.split_once(':').filter(|_| !part.starts_with(['/', '#']));
            return password.is_some_and(|(_, password)| is_literal(password));
        };
        let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
        parameters.any(|(name, value)| is_key(name) && is_literal(value))
    })
}

/// The text with the user name, the password, the query and the fragment removed from each URL.
pub fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // bounded: each turn consumes at least one byte of `rest`
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let is_end = |c: char| c.is_whitespace() || c.is_control() || "\"'`<>()[]{}|\\".contains(c);
        // an IPv6 address stands in brackets
        let host =
            if after.starts_with('[') { after.find(']').map_or(0, |end| end + 1) } else { 0 };
        let end = after[host..].find(is_end).map_or(after.len(), |end| host + end);
        let (url, behind) = after.split_at(end);
        let bare = url.split(['?', '#']).next().unwrap_or_default();
        // a password may contain a slash that was not encoded
        out.push_str(bare.rsplit_once('@').map_or(bare, |(_, host)| host));
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The secrets of one server, which no message about it may contain: what its URL has besides its host,
/// and the values of its headers.
#[derive(Clone, Default)]
pub struct ServerSecrets(Vec<String>);

impl ServerSecrets {
    /// The secrets of a server with this URL and these header values.
    pub fn new<'t>(url: &str, headers: impl Iterator<Item = &'t str>) -> ServerSecrets {
        let mut secrets = Vec::new();
        for part in secret_parts(url) {
            let is_path = part.starts_with(['/', '?', '#']);
            let least = if is_path { PATH_PART_MIN } else { SECRET_MIN };
            let (path, query) = part.split_once(['?', '#']).unwrap_or((part, ""));
            let pieces = path.split(['/', ':']).filter(|piece| piece.len() >= least);
            let values =
                query.split(['&', '#']).map(|one| one.split_once('=').map_or(one, |o| o.1));
            secrets
                .extend(pieces.chain(values.filter(|v| v.len() >= SECRET_MIN)).map(str::to_owned));
        }
        for value in headers {
            // with and without the scheme, as in `Bearer KEY`
            let last = value.rsplit_once(' ').map_or("", |(_, last)| last);
            let both = [value, last].into_iter().filter(|text| text.len() >= PATH_PART_MIN);
            secrets.extend(both.map(str::to_owned));
        }
        // a secret may contain another one
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        ServerSecrets(secrets)
    }

    /// The text without these secrets, and without those of any URL.
    pub fn hide(&self, text: &str) -> String {
        let text = without_secrets(text);
        self.0.iter().fold(text, |text, secret| text.replace(secret.as_str(), HIDDEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_secrets() {
        let check = |text: &str, expected: &str| assert_eq!(without_secrets(text), expected);
        check("no URL: a //b", "no URL: a //b");
        check(
            "for url (https://u:p@h.example:8/mcp?key=s#f): no",
            "for url (https://h.example:8/mcp): no",
        );
        check("\"mqtt://u:p@h\", redis://:p@h/0?x", "\"mqtt://h\", redis://h/0");
        check("http://u:p/x@h/y http://h", "http://h/y http://h");
        check("http://[::1]:80/a?b] http://x?y=1", "http://[::1]:80/a] http://x");
        check("://", "://");
        check("https://h/a?k=1\nnext", "https://h/a\nnext");
    }

    #[test]
    fn a_server_has_secrets_in_its_url_and_headers() {
        let secrets = ServerSecrets::new(
            "https://me:pass1@far.example:8443/api/hook-9f3/mcp?key=canary&x=1#frag",
            ["Bearer sk-123456", "*/*"].into_iter(),
        );
        let check = |text: &str, expected: &str| assert_eq!(secrets.hide(text), expected);
        check("Cannot POST /api/hook-9f3/mcp", "Cannot POST /api/(hidden)/mcp");
        check("key canary, pass1 and sk-123456", "key (hidden), (hidden) and (hidden)");
        check("Bearer sk-123456", "(hidden)");
        check("far.example:8443 */*", "far.example:8443 */*");
        check(
            "POST https://far.example/api/hook-9f3?key=canary",
            "POST https://far.example/api/(hidden)",
        );
    }

    #[test]
    fn parts_of_a_url_that_is_not_expanded() {
        let check = |url: &str, expected: &[&str]| assert_eq!(secret_parts(url), expected, "{url}");
        check("https://far.example", &[]);
        check("https://${H}:${P}/mcp", &["/mcp"]);
        check("https://${U}:x@${H}?${Q}", &["${U}:x", "?${Q}"]);
        check("${URL}", &["${URL}"]);
        check("${URL:-http://h/mcp}", &["${URL:-http://h/mcp}"]);
        check("https://${H}/${K}", &["/${K}"]);
    }
}
