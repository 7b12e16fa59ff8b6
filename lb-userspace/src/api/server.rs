//! The API's server: routes, and what each asks the agent. It holds no state of its own.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        ConnectInfo, DefaultBodyLimit, FromRequest, FromRequestParts, Query, RawPathParams,
        Request, State, rejection::QueryRejection,
    },
    http::{Method, StatusCode, Uri, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, UnixListener};

use super::{
    MAX_BODY, MAX_LIST, VERSION,
    dto::{self, Action, Changed, ListChanged, ListSubject, Subject},
    error::ApiError,
};
use crate::{
    agent::{Handle, Listed},
    health::Target,
    http::{self, Sender},
    metrics,
    model::{AccessEdit, Backend, Change, EditRated, ModelError, ServiceId},
    snapshot::ServiceStatus,
};

/// Answers requests until `shutdown`, and then those that are under way.
///
/// # Errors
/// The socket failed.
pub async fn serve(
    listener: UnixListener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    http::serve(listener, router(handle), shutdown).await
}

/// The part of it that backends may use from where they are: what they report of themselves. Answers until `shutdown`, and then
/// those that are under way.
///
/// # Errors
/// The socket failed.
pub async fn serve_reports(
    listener: TcpListener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let routes = reports().route_layer(middleware::from_fn(of_oneself));
    let router = Router::new()
        .nest(VERSION, routes)
        .fallback(no_report)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(handle);
    http::serve_others(listener, router, shutdown).await
}

fn reports() -> Router<Handle> {
    Router::new()
        .route("/services/{id}/backends/{address}/heartbeat", post(beat))
        .route("/services/{id}/backends/{address}/drained", post(drained))
}

/// A backend reports for itself: nobody else could be told from anybody.
async fn of_oneself(
    ConnectInfo(Sender(sender)): ConnectInfo<Sender>,
    Address(address): Address,
    request: Request,
    next: Next,
) -> Response {
    let sender = sender.ip().to_canonical();
    if sender == address.ip() {
        return next.run(request).await;
    }
    let message = format!(
        "a report on backend {address} has to come from {}, and this one came from {sender}",
        address.ip()
    );
    ApiError::new(StatusCode::FORBIDDEN, "not_its_own", message).into_response()
}

fn router(handle: Handle) -> Router {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics_text))
        .route("/services", get(services).post(add_service))
        .route("/access-lists", get(access_lists))
        .route(
            "/access-lists/{name}",
            get(access_list)
                .put(set_access_list)
                .patch(edit_access_list)
                .delete(remove_access_list)
                .layer(DefaultBodyLimit::max(MAX_LIST)),
        )
        .route("/access-lists/{name}/judge", get(judge))
        .route("/flows", get(flows))
        .route("/clients", get(clients))
        .route("/events", get(events))
        .route("/announce", post(announce))
        .route(
            "/services/{id}",
            get(service).patch(edit_service).delete(remove_service),
        )
        .route("/services/{id}/failover", post(fail_over))
        .route("/services/{id}/backends", get(backends).post(add_backend))
        .route(
            "/services/{id}/backends/{address}",
            patch(edit_backend).delete(remove_backend),
        )
        .merge(reports());
    Router::new()
        .nest(VERSION, routes)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(handle)
}

type Answer<T> = Result<T, ApiError>;

async fn status(State(handle): State<Handle>) -> Answer<Json<dto::Status>> {
    Ok(Json((&handle.snapshot().await?).into()))
}

async fn metrics_text(State(handle): State<Handle>) -> Answer<impl IntoResponse> {
    let text = metrics::render(&handle.snapshot().await?);
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

async fn services(State(handle): State<Handle>) -> Answer<Json<Vec<dto::Service>>> {
    let snapshot = handle.snapshot().await?;
    Ok(Json(snapshot.services.iter().map(Into::into).collect()))
}

async fn service(State(handle): State<Handle>, Id(id): Id) -> Answer<Json<dto::Service>> {
    Ok(Json((&find(&handle, id).await?).into()))
}

async fn backends(State(handle): State<Handle>, Id(id): Id) -> Answer<Json<Vec<dto::Backend>>> {
    let service = find(&handle, id).await?;
    Ok(Json(service.backends.iter().map(Into::into).collect()))
}

async fn flows(
    State(handle): State<Handle>,
    query: Result<Query<dto::FlowQuery>, QueryRejection>,
) -> Answer<Json<dto::Flows>> {
    let Query(query) = query.map_err(|error| ApiError::malformed(error.body_text()))?;
    check_names(&handle, query.service, query.backend).await?;
    let filter = query.into_filter().map_err(ApiError::malformed)?;
    Ok(Json(handle.flows(filter).await?.into()))
}

async fn clients(
    State(handle): State<Handle>,
    query: Result<Query<dto::ClientQuery>, QueryRejection>,
) -> Answer<Json<dto::Clients>> {
    let Query(query) = query.map_err(|error| ApiError::malformed(error.body_text()))?;
    check_names(&handle, query.service, query.backend).await?;
    let filter = query.into_filter().map_err(ApiError::malformed)?;
    Ok(Json(handle.clients(filter).await?.into()))
}

async fn events(
    State(handle): State<Handle>,
    query: Result<Query<dto::EventQuery>, QueryRejection>,
) -> Answer<Json<dto::Events>> {
    let Query(query) = query.map_err(|error| ApiError::malformed(error.body_text()))?;
    check_names(&handle, query.service, None).await?;
    Ok(Json(handle.events(query.into()).await?.into()))
}

async fn announce(
    State(handle): State<Handle>,
    Body(dto::Announce { vip }): Body<dto::Announce>,
) -> Answer<Json<dto::Announced>> {
    Ok(Json(handle.announce(vip).await?.into()))
}

/// Nobody's flows and a misspelt name look alike otherwise.
async fn check_names(
    handle: &Handle,
    service: Option<ServiceId>,
    backend: Option<SocketAddr>,
) -> Answer<()> {
    let Some(id) = service else {
        return Ok(());
    };
    let service = find(handle, id).await?;
    match backend {
        Some(address) if service.backend(address).is_none() => {
            Err(ModelError::UnknownBackend { id, address }.into())
        }
        _ => Ok(()),
    }
}

async fn access_lists(State(handle): State<Handle>) -> Answer<Json<Vec<dto::AccessListSummary>>> {
    let lists = handle.access_lists().await?.into_iter();
    Ok(Json(lists.map(Into::into).collect()))
}

async fn access_list(
    State(handle): State<Handle>,
    Name(name): Name,
) -> Answer<Json<dto::AccessList>> {
    Ok(Json(find_list(&handle, name).await?.into()))
}

async fn judge(
    State(handle): State<Handle>,
    Name(name): Name,
    query: Result<Query<dto::AccessQuery>, QueryRejection>,
) -> Answer<Json<dto::Judged>> {
    let Query(query) = query.map_err(|error| ApiError::malformed(error.body_text()))?;
    let (list, _) = find_list(&handle, name).await?;
    let (prefix, access) = list.judge(query.source);
    Ok(Json(dto::Judged {
        source: query.source,
        access: access.name().to_owned(),
        prefix,
    }))
}

async fn find_list(handle: &Handle, name: String) -> Answer<Listed> {
    let mut lists = handle.access_lists().await?.into_iter();
    let found = lists.find(|(list, _)| list.name() == name);
    Ok(found.ok_or(ModelError::UnknownAccessList { name })?)
}

async fn set_access_list(
    State(handle): State<Handle>,
    Name(name): Name,
    Body(prefixes): Body<dto::Prefixes>,
) -> Answer<(StatusCode, Json<ListChanged>)> {
    let is_new = find_list(&handle, name.clone()).await.is_err();
    let list = prefixes.into_model(&name)?;
    handle.change(Change::SetAccessList(list)).await?;
    let (status, action) = if is_new {
        (StatusCode::CREATED, Action::Added)
    } else {
        (StatusCode::OK, Action::Edited)
    };
    Ok((status, list_changed(action, name, None)))
}

async fn edit_access_list(
    State(handle): State<Handle>,
    Name(name): Name,
    Body(edit): Body<AccessEdit>,
) -> Answer<Json<ListChanged>> {
    if edit == AccessEdit::default() {
        return Err(ApiError::malformed(
            "nothing to change: give allow, deny or remove",
        ));
    }
    let change = Change::EditAccessList(name.clone(), edit.clone());
    handle.change(change).await?;
    Ok(list_changed(Action::Edited, name, Some(edit)))
}

async fn remove_access_list(
    State(handle): State<Handle>,
    Name(name): Name,
) -> Answer<Json<ListChanged>> {
    handle
        .change(Change::RemoveAccessList(name.clone()))
        .await?;
    Ok(list_changed(Action::Removed, name, None))
}

fn list_changed(
    action: Action,
    access_list: String,
    edit: Option<AccessEdit>,
) -> Json<ListChanged> {
    Json(ListChanged {
        changed: ListSubject {
            action,
            access_list,
            edit,
        },
    })
}

async fn find(handle: &Handle, id: ServiceId) -> Answer<ServiceStatus> {
    let service = handle.service(id).await?;
    Ok(service.ok_or(ModelError::UnknownService { id })?)
}

async fn add_service(
    State(handle): State<Handle>,
    Body(new): Body<dto::NewService>,
) -> Answer<(StatusCode, Json<Changed>)> {
    let id = new.id;
    // Should the group change meanwhile, the model refuses what differs.
    let shared = match &new.group {
        Some(group) => handle.group(group.clone()).await?,
        None => None,
    };
    let service = new.into_model(shared.as_ref())?;
    handle.change(Change::AddService(service)).await?;
    Ok((StatusCode::CREATED, changed(Action::Added, id, None)))
}

async fn edit_service(
    State(handle): State<Handle>,
    Id(id): Id,
    Body(edit): Body<dto::EditService>,
) -> Answer<Json<Changed>> {
    if edit == dto::EditService::default() {
        return Err(ApiError::malformed(
            "nothing to change: give announce, ring_size, scheduler, flow_state, on_down, moving_time_ms, dead_after_ms, no_backend, mss_clamp, second_hop, address_pool, client_address, syn_proxy, access_list, flow_limit, source_limit, source_prefix_v4, source_prefix_v6, source_routes, persistence_ms, persistence_prefix, spill_below, failback, slow_start, adaptive, flap_damping, passive, panic_below, group, quic, server_ids or subsets",
        ));
    }
    let change = Change::EditService(id, edit.clone().into());
    handle.change(change).await?;
    let mut answer = changed(Action::Edited, id, None);
    answer.0.changed.settings = Some(edit);
    Ok(answer)
}

async fn fail_over(
    State(handle): State<Handle>,
    Id(id): Id,
    Body(dto::FailOver { to }): Body<dto::FailOver>,
) -> Answer<Json<Changed>> {
    handle.change(Change::FailOver(id, to)).await?;
    let mut answer = changed(Action::Edited, id, None);
    answer.0.changed.tier = Some(to);
    Ok(answer)
}

async fn remove_service(State(handle): State<Handle>, Id(id): Id) -> Answer<Json<Changed>> {
    handle.change(Change::RemoveService(id)).await?;
    Ok(changed(Action::Removed, id, None))
}

async fn add_backend(
    State(handle): State<Handle>,
    Id(id): Id,
    Body(new): Body<dto::NewBackend>,
) -> Answer<(StatusCode, Json<Changed>)> {
    let address = new.address;
    handle.change(Change::AddBackend(id, new.into())).await?;
    let answer = changed(Action::Added, id, Some(address));
    Ok((StatusCode::CREATED, answer))
}

async fn remove_backend(
    State(handle): State<Handle>,
    Id(id): Id,
    Address(address): Address,
) -> Answer<Json<Changed>> {
    handle.change(Change::RemoveBackend(id, address)).await?;
    Ok(changed(Action::Removed, id, Some(address)))
}

async fn edit_backend(
    State(handle): State<Handle>,
    Id(id): Id,
    Address(address): Address,
    Body(edit): Body<dto::EditBackend>,
) -> Answer<Json<Changed>> {
    if edit == dto::EditBackend::default() {
        return Err(ApiError::malformed(
            "nothing to change: give weight, state, max_connections, max_flow_rate, max_bandwidth or tier",
        ));
    }
    let dto::EditBackend {
        weight,
        state,
        max_connections,
        max_flow_rate,
        max_bandwidth,
        tier,
    } = edit;
    let change = Change::EditBackend {
        id,
        address,
        weight,
        admin: state,
        max_connections,
        rated: EditRated {
            max_flow_rate,
            max_bandwidth,
        },
        tier,
    };
    handle.change(change).await?;
    let mut answer = changed(Action::Edited, id, Some(address));
    let subject = &mut answer.0.changed;
    (subject.weight, subject.state) = (weight, state);
    (subject.max_connections, subject.tier) = (max_connections, tier);
    (subject.max_flow_rate, subject.max_bandwidth) = (max_flow_rate, max_bandwidth);
    Ok(answer)
}

async fn beat(
    State(handle): State<Handle>,
    Id(service): Id,
    Address(address): Address,
) -> Answer<Json<dto::Heard>> {
    handle.beat(Target { service, address }).await?;
    Ok(Json(dto::Heard {
        service,
        backend: address,
    }))
}

async fn drained(
    State(handle): State<Handle>,
    Id(service): Id,
    Address(address): Address,
) -> Answer<Json<dto::Heard>> {
    handle.drained(Target { service, address }).await?;
    Ok(Json(dto::Heard {
        service,
        backend: address,
    }))
}

fn changed(action: Action, service: ServiceId, backend: Option<SocketAddr>) -> Json<Changed> {
    Json(Changed {
        changed: Subject {
            action,
            service,
            backend,
            weight: None,
            state: None,
            max_connections: None,
            max_flow_rate: None,
            max_bandwidth: None,
            tier: None,
            settings: None,
        },
    })
}

async fn no_route(uri: Uri) -> Response {
    let message = format!(
        "no path {}: there are {VERSION}/status, {VERSION}/metrics, {VERSION}/flows, {VERSION}/clients, {VERSION}/events, {VERSION}/announce, {VERSION}/access-lists[/NAME[/judge]] and {VERSION}/services[/ID[/failover|/backends[/ADDRESS[/heartbeat|/drained]]]], ID percent-encoded as in 10.0.0.1:80%2Ftcp",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, "no_route", message).into_response()
}

async fn no_report(uri: Uri) -> Response {
    let message = format!(
        "no path {}: backends report to {VERSION}/services/ID/backends/ADDRESS/heartbeat and …/drained here, ID percent-encoded as in 10.0.0.1:80%2Ftcp",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, "no_route", message).into_response()
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let message = format!("{method} is not a method of {}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", message).into_response()
}

/// The service that the path names.
struct Id(ServiceId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        Ok(Self(path_part(parts, state, "id").await?.parse()?))
    }
}

/// The access list that the path names.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        Ok(Self(path_part(parts, state, "name").await?))
    }
}

/// The backend that the path names.
struct Address(SocketAddr);

impl<S: Send + Sync> FromRequestParts<S> for Address {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let text = path_part(parts, state, "address").await?;
        Ok(Self(Backend::parse_address(&text)?))
    }
}

async fn path_part<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Answer<String> {
    let parameters = RawPathParams::from_request_parts(parts, state).await;
    let parameters = parameters.map_err(|error| ApiError::malformed(error.to_string()))?;
    let part = parameters.iter().find(|(key, _)| *key == name);
    // The routes above name every part that a handler asks for.
    let part = part.ok_or_else(|| ApiError::malformed(format!("the path has no {name}")))?;
    Ok(part.1.to_owned())
}

/// A JSON body. Any content type will do: there is nothing else that it could be.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let message = format!(
                    "the body is too large: at most {MAX_BODY} bytes, {MAX_LIST} of an access list"
                );
                return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
            }
            ApiError::malformed(error.body_text())
        })?;
        match serde_json::from_slice(&bytes) {
            Ok(body) => Ok(Self(body)),
            Err(error) => Err(ApiError::malformed(format!("the body is wrong: {error}"))),
        }
    }
}
