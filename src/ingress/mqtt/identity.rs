//! Who sent a message, by what the broker says of it.

use crate::catalog::catalog::{Catalog, MqttIdentity};
use crate::request::client::Client;
use crate::request::name::is_app_name;

/// The client that published a request on the topic of this application, with these user properties.
pub(super) fn client_of(catalog: &Catalog, app: &str, properties: &[(String, String)]) -> Client {
    let vouched = match &catalog.mqtt.identity {
        None | Some(MqttIdentity::Listed) => return catalog.client_named(app),
        Some(MqttIdentity::Topic) => Some(app),
        Some(MqttIdentity::UserProperty(name)) => {
            let mut values = properties.iter().filter(|(key, _)| key == name);
            let value = values.next().map(|(_, value)| value.as_str());
            // one of several is the client's own
            value.filter(|_| values.next().is_none())
        }
    };
    match vouched.filter(|name| is_app_name(name)) {
        Some(name) => Client::vouched(app, name),
        None => Client::unlisted(app),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::catalog::catalog::{AppPolicy, MqttPart};
    use crate::request::client::UNLISTED;

    #[test]
    fn names_count_if_somebody_vouches_for_them() {
        let check = |identity: &MqttIdentity, app: &str, users: &[&str], expected: &str| {
            let apps = BTreeMap::from(
                ["camera", "http"].map(|name| (name.to_owned(), AppPolicy::DEFAULT)),
            );
            let mqtt = MqttPart { identity: Some(identity.clone()), ..MqttPart::default() };
            let catalog = Catalog { apps, mqtt, ..Catalog::default() };
            let users: Vec<(String, String)> =
                users.iter().map(|user| ("user".to_owned(), (*user).to_owned())).collect();
            let client = client_of(&catalog, app, &users);
            assert_eq!(client.principal, expected, "{identity:?}, {app}, {users:?}");
            assert_eq!(client.app, app);
        };
        let property = MqttIdentity::UserProperty("user".to_owned());
        check(&MqttIdentity::Listed, "camera", &["other"], "camera");
        check(&MqttIdentity::Listed, "door", &["camera"], UNLISTED);
        // an interface of this process is never a name in a topic
        check(&MqttIdentity::Listed, "http", &[], UNLISTED);
        check(&MqttIdentity::Topic, "door", &["camera"], "door");
        check(&MqttIdentity::Topic, "mcp", &[], UNLISTED);
        check(&property, "camera", &["door"], "door");
        check(&property, "camera", &[], UNLISTED);
        check(&property, "camera", &["camera", "door"], UNLISTED);
        check(&property, "camera", &["+"], UNLISTED);
        check(&property, "camera", &["cli"], UNLISTED);
    }
}
