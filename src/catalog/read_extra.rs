//! The checks of what a provider's entry adds to each request: fields of the body, and headers.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::mistake::Scope;
use super::provider::ProviderKind;

/// Headers that the HTTP client writes, or this service does for each request.
const HEADERS: [&str; 7] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "te",
    "transfer-encoding",
];

/// Adds a mistake for each extra field that the service writes itself.
pub(super) fn check_body(kind: ProviderKind, extra: &Map<String, Value>, scope: &mut Scope<'_>) {
    for name in extra.keys().filter(|name| kind.fields().contains(&name.as_str())) {
        scope.at("extra_body").at(name).add("is a field that the service writes itself; remove it");
    }
}

/// The extra headers, whose values are secret; a mistake for each that cannot be one, or that the
/// service writes itself.
pub(super) fn check_headers(
    kind: ProviderKind,
    has_key: bool,
    headers: &BTreeMap<String, String>,
    scope: &mut Scope<'_>,
) -> HeaderMap {
    let mut checked = HeaderMap::new();
    let mut scope = scope.at("headers");
    for (name, value) in headers {
        let mut scope = scope.at(name);
        let Ok(parsed) = HeaderName::try_from(name) else {
            scope.add("cannot be the name of a header");
            continue;
        };
        let is_ours = HEADERS.contains(&parsed.as_str())
            || kind.headers().contains(&parsed.as_str())
            || has_key && kind.key_header() == parsed.as_str();
        if is_ours {
            scope.add("is a header that the service writes itself; remove it");
        }
        let Ok(mut value) = HeaderValue::try_from(value) else {
            scope.add("the value contains characters that are invalid in a header");
            continue;
        };
        value.set_sensitive(true);
        if checked.insert(parsed, value).is_some() {
            scope.add("is there twice, with other capitals");
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::expand::Variables;
    use super::super::provider::{MaxTokensField, Provider};
    use super::super::read;
    use super::super::server::Endpoint;
    use super::*;

    fn read(change: &Value) -> (Option<Provider>, Vec<String>) {
        let mut big = json!({"kind": "openai", "base_url": "https://a.example", "model": "m"});
        big.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let file = json!({"pilotlight": {"providers": {"big": big}}}).to_string();
        let variables = Variables::from([("WORD".to_owned(), "canary\n".to_owned())]);
        let (catalog, mistakes) = read::read(&file, &variables);
        let provider = catalog.servers.into_iter().find_map(|server| match server.endpoint {
            Endpoint::Provider(provider) => Some(*provider),
            Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Mqtt { .. } => None,
        });
        (provider, mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn extras_of_requests_are_read() {
        let (provider, mistakes) = read(&json!({
            "key": "${WORD:-x}", "max_tokens_field": "max_completion_tokens", "strict": false,
            "extra_body": {"reasoning": {"effort": "low"}, "seen": null},
            "headers": {"OpenAI-Organization": "canary"},
        }));
        assert_eq!(mistakes, Vec::<String>::new());
        let provider = provider.unwrap();
        assert_eq!(provider.max_tokens_field, MaxTokensField::MaxCompletionTokens);
        assert!(!provider.strict);
        assert_eq!(provider.extra_body.0["reasoning"], json!({"effort": "low"}));
        assert_eq!(provider.headers.0["openai-organization"], "canary");
        assert!(!format!("{provider:?}").contains("canary"));
        let (provider, _) = read(&json!({}));
        let provider = provider.unwrap();
        assert_eq!((provider.max_tokens_field, provider.strict), (MaxTokensField::MaxTokens, true));
        // another header may hold the key
        assert_eq!(read(&json!({"headers": {"Authorization": "Basic x"}})).1, Vec::<String>::new());
    }

    #[test]
    fn invalid_extras_are_named() {
        let check = |change: Value, expected: &str| {
            let (_, mistakes) = read(&change);
            assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{mistakes:?}");
            assert!(!format!("{mistakes:?}").contains("canary"), "{mistakes:?}");
        };
        let at = "pilotlight.providers.big.";
        for name in ["model", "messages", "stream", "max_completion_tokens", "temperature"] {
            let message =
                format!("{at}extra_body.{name}: is a field that the service writes itself");
            check(json!({"extra_body": {name: 1}}), &message);
        }
        let anthropic = |change: Value| {
            let mut all = json!({"kind": "anthropic"});
            all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            all
        };
        check(anthropic(json!({"extra_body": {"system": ""}})), "extra_body.system: is a field");
        check(
            anthropic(json!({"headers": {"Anthropic-Version": "1"}})),
            "headers.Anthropic-Version: is a header that the service writes itself",
        );
        check(
            json!({"key": "x", "headers": {"Authorization": "y"}}),
            "headers.Authorization: is a",
        );
        check(json!({"headers": {"Content-Type": "y"}}), "headers.Content-Type: is a header");
        check(json!({"headers": {"two words": "y"}}), "headers.two words: cannot be the name");
        check(json!({"headers": {"x-who": "${WORD}"}}), "headers.x-who: the value contains");
        check(json!({"headers": {"X-A": "1", "x-a": "2"}}), "is there twice");
        check(json!({"max_tokens_field": "tokens"}), "max_tokens_field: unknown variant");
        check(
            anthropic(json!({"max_tokens_field": "max_completion_tokens"})),
            "max_tokens_field: is supported for the kind openai only",
        );
        check(anthropic(json!({"strict": false})), "strict: is supported for the kind openai only");
    }
}
