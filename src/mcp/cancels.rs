//! Cancellation of calls: the notification, and the watch over a server that must react to it.

use rmcp::RoleClient;
use rmcp::service::{Peer, RequestHandle};
use tokio::sync::{mpsc, watch};

use crate::limits::engine::ENGINE_CANCEL_MAX;

/// A call without a result yet.
pub(super) type CallHandle = RequestHandle<RoleClient>;

/// Whether a server must show that it reacts to cancellations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    Watched,
    Unwatched,
}

/// Tells the server to stop calls whose client has gone. A server that is `watched` must answer a
/// request after that within [`ENGINE_CANCEL_MAX`]: a process that has stopped, or computes where it
/// should read, is found at once, and not by the silence towards the next client.
pub(super) async fn send_cancels(
    peer: Peer<RoleClient>,
    mut cancels: mpsc::Receiver<CallHandle>,
    watched: Option<watch::Sender<bool>>,
) {
    // ends with the connection
    while let Some(call) = cancels.recv().await {
        let cancel = async {
            if let Err(error) = call.cancel(Some("the client has gone".to_owned())).await {
                tracing::debug!(%error, "a call could not be cancelled");
            }
            if watched.is_some() {
                // an error is an answer
                drop(peer.list_tools(None).await);
            }
        };
        if tokio::time::timeout(ENGINE_CANCEL_MAX, cancel).await.is_err()
            && let Some(hangs) = &watched
        {
            hangs.send_replace(true);
        }
    }
}
