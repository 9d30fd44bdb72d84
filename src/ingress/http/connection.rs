//! The HTTP server: accepts connections and serves each until it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, Response};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Connection};
use super::progress::ProgressStream;
use crate::limits::{
    DRAIN_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEAD_MAX, HTTP_LINGER_BYTES_MAX, HTTP_LINGER_MAX,
};

/// Pause after a connection could not be accepted, mostly because the process has too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then until open requests have ended.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let admission = Admission::default();
    let mut connections = JoinSet::new();
    let mut is_failing = false;
    // ends with the service
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                is_failing = false;
                if let Some(connection) = admission.admit(peer.ip()).await {
                    let service = serve_one(stream, connection, routes.clone(), stop.clone());
                    connections.spawn(service);
                }
                // a connection that was closed for this one ends before the next is accepted
                tokio::task::yield_now().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "connections can't be accepted");
                }
                admission.close_one();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
        tracing::warn!("stopped before all HTTP requests had ended");
    }
}

async fn serve_one(
    mut stream: TcpStream,
    connection: Connection,
    routes: Router,
    stop: CancellationToken,
) {
    let connection = Arc::new(connection);
    // small chunks must not wait for acknowledgements (Nagle's algorithm)
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(routes);
    let service = ConnectionService { routes, connection: Arc::clone(&connection) };
    let server = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEAD_MAX)
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(ProgressStream::new(&mut stream)), service);
    let mut server = Box::pin(server);
    let ended = tokio::select! {
        ended = server.as_mut() => ended,
        () = connection.closing() => {
            tracing::debug!("an HTTP connection was closed for another one");
            return;
        }
        () = stop.cancelled() => {
            server.as_mut().graceful_shutdown();
            server.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
    drop(server);
    tokio::select! {
        _ = tokio::time::timeout(HTTP_LINGER_MAX, linger(stream)) => {}
        () = connection.closing() => {}
        () = stop.cancelled() => {}
    }
}

/// Reads on, within a bound, after the answer was sent: closing a socket with unread data resets the
/// connection, and the client of a refused body might never read the answer.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut discarded = vec![0; 16 * 1024];
    let mut left = HTTP_LINGER_BYTES_MAX;
    while left > 0 {
        match stream.read(&mut discarded).await {
            Ok(0) | Err(_) => return,
            Ok(read) => left = left.saturating_sub(read),
        }
    }
}

/// The routes, for one connection: its state follows its requests.
struct ConnectionService {
    routes: TowerToHyperService<Router>,
    connection: Arc<Connection>,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response<TrackedBody>;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.connection.has_head();
        let answering = Answering(Arc::clone(&self.connection));
        request.extensions_mut().insert(Arc::clone(&self.connection));
        let response = self.routes.call(request);
        Box::pin(async move {
            Ok(response.await?.map(|body| TrackedBody { body, _answering: answering }))
        })
    }
}

/// A request that is being answered, until this is dropped.
struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.waits_for_head();
    }
}

/// A response's body, with which the request ends.
struct TrackedBody {
    body: axum::body::Body,
    _answering: Answering,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
