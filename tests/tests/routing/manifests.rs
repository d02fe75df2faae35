//! The mesh that routes are tried on, and the routes.

/// Namespaces, identities, and the Services that are parents; all have the application `own`.
pub const MESH: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: team, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: alice, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: carol, namespace: team}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec:
  selector: {app: own}
  ports:
    - {name: http, port: 80, targetPort: 8080}
    - {name: http-other, port: 81, targetPort: 8080}
    - {name: http-plain, port: 82, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: spent, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec: {selector: {app: own}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: {name: spent, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: "", name: spent}]
  retryConstraint: {budget: {percent: 0, interval: 1h}, minRetryRate: {count: 3, interval: 1h}}
---
apiVersion: v1
kind: Service
metadata: {name: calls, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec: {selector: {app: own}, ports: [{name: grpc, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec: {selector: {app: own}, ports: [{name: tcp, port: 7000, targetPort: 8080}, {name: tls, port: 443, targetPort: 8443}]}
"#;

/// An application, and the Service that routes lead to.
pub const APP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: SPACE}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers:
        - name: app
          command: [PROGRAM, NAME, "0.0.0.0:8080", "0.0.0.0:8443", CERT, KEY]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: SPACE, labels: {LABEL}}
spec: {selector: {app: NAME}, ports: [PORTS]}
"#;

/// Ports of an application's Service. A backend is spoken to as its port says.
pub const PORTS: &str = "{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 81, targetPort: 8080}, \
                     {name: tls, port: 443, targetPort: 8443}";

/// What a rule of an HTTPRoute of `web`, port 80, says.
const RULES: &[(&str, &str)] = &[
    (
        "matches",
        r#"
    - {matches: [{path: {type: Exact, value: /pre/exact}}], backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /pre}}], backendRefs: [{name: b, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /pre/longer}}], backendRefs: [{name: c, port: 80}]}
    - {matches: [{path: {type: RegularExpression, value: '/[0-9]+(/x)?'}}], backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /head}, headers: [{name: X-V, value: one}]}], backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /head}, headers: [{type: RegularExpression, name: x-v, value: 't.*'}]}], backendRefs: [{name: b, port: 80}]}
    - {matches: [{path: {value: /head}, headers: [{name: x-v, value: one}, {name: x-w, value: '1'}]}], backendRefs: [{name: c, port: 80}]}
    - {matches: [{path: {value: /query}, queryParams: [{name: v, value: 'a b'}]}], backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /query}, queryParams: [{type: RegularExpression, name: v, value: '[xy]'}, {name: w, value: '1'}]}], backendRefs: [{name: b, port: 80}]}
    - {matches: [{path: {value: /method}, method: POST}, {path: {value: /method}, method: PUT}], backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /method}, headers: [{name: x-v, value: one}]}], backendRefs: [{name: b, port: 80}]}
    - {name: first, matches: [{path: {value: /twice}}], backendRefs: [{name: a, port: 80}]}
    - {name: second, matches: [{path: {value: /twice}}], backendRefs: [{name: b, port: 80}]}
"#,
    ),
    ("younger", "\n    - {matches: [{path: {value: /twice}}], backendRefs: [{name: c, port: 80}]}\n"),
    (
        "filters",
        r#"
    - matches: [{path: {value: /filter/headers}}]
      filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: rule}], add: [{name: x-add, value: rule}], remove: [x-gone]}}
        - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-new, value: one}]}}
      backendRefs:
        - name: a
          port: 80
          filters:
            - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-level, value: backend}]}}
            - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-new, value: two}], remove: [x-app]}}
    - matches: [{path: {value: /filter/redirect}}]
      filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /to}}}]
    - matches: [{path: {value: /filter/rewrite}}]
      filters: [{type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /inner}}}]
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {value: /filter/mirror}}]
      filters:
        - {type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: c, port: 80}}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: own, port: 80}, percent: 0}}
      backendRefs: [{name: a, port: 80}]
    - matches: [{path: {value: /filter/cors}}]
      filters: [{type: CORS, cors: {allowOrigins: ['https://*.example'], allowMethods: [GET, PUT], allowHeaders: [x-a], allowCredentials: true, maxAge: 60}}]
      backendRefs: [{name: a, port: 80}]
"#,
    ),
    (
        "shares",
        r#"
    - matches: [{path: {value: /share}}]
      backendRefs: [{name: a, port: 80, weight: 3}, {name: b, port: 80, weight: 1}, {name: c, port: 80, weight: 0}]
    - matches: [{path: {value: /lost}}]
      backendRefs: [{name: a, port: 80, weight: 0}]
"#,
    ),
    (
        "tries",
        r#"
    - {matches: [{path: {value: /try/again}}], retry: {codes: [503], attempts: 2, backoff: 1ms}, backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /try/once}}], backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /try/request}}], timeouts: {request: 200ms}, backendRefs: [{name: a, port: 80}]}
    - {matches: [{path: {value: /try/backend}}], timeouts: {backendRequest: 200ms}, retry: {codes: [504], attempts: 1, backoff: 1ms}, backendRefs: [{name: a, port: 80}]}
"#,
    ),
];

/// Everything that isn't an HTTPRoute of `web`, port 80.
const OTHERS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: other-port, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 81}]
  rules: [{backendRefs: [{name: b, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: spent, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: spent}]
  rules: [{retry: {codes: [503], attempts: 2, backoff: 1ms}, backendRefs: [{name: spent, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: team}
spec:
  parentRefs: [{group: "", kind: Service, name: web, namespace: shop, port: 80}]
  rules: [{backendRefs: [{name: theirs, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: calls}]
  rules:
    - {matches: [{method: {service: grpc.Echo}}], backendRefs: [{name: b, port: 81}]}
    - {matches: [{method: {service: grpc.Echo, method: Unary}}], backendRefs: [{name: a, port: 81}]}
    - {matches: [{method: {service: grpc.Echo, method: Unary}, headers: [{name: x-v, value: one}]}], backendRefs: [{name: c, port: 81}],
       filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-new, value: one}]}}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: raw, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: raw, port: 7000}]
  rules: [{backendRefs: [{name: a, port: 80, weight: 1}, {name: b, port: 80, weight: 1}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: raw, port: 443}]
  hostnames: [one.example]
  rules: [{backendRefs: [{name: a, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: any, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: raw, port: 443}]
  hostnames: ['*.example']
  rules: [{backendRefs: [{name: b, port: 443}]}]
"#;

/// All routes, as text.
pub fn routes() -> String {
    let written = RULES.iter().map(|(name, rules)| {
        let age = if *name == "younger" { 2025 } else { 2024 };
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: '{age}-01-01T00:00:00Z'}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]\n  rules:{rules}---\n"
        )
    });
    written.collect::<String>() + OTHERS
}
