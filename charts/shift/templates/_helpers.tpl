{{- define "shift.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "shift.serviceAccount" -}}
{{- default (include "shift.name" .) .Values.serviceAccount.name -}}
{{- end }}

{{- define "shift.selector" -}}
app.kubernetes.io/name: shift-operator
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "shift.labels" -}}
{{ include "shift.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What the operator may do in a namespace that it serves; docs/RBAC.md has the reason of each line. It reads one Secret at
a time, by name, and lists none. */}}
{{- define "shift.rules" -}}
- apiGroups: [shiftparallel.dev]
  resources: [shiftdeployments]
  verbs: [get, list, watch]
- apiGroups: [shiftparallel.dev]
  resources: [shiftdeployments/status, shiftdeployments/scale]
  verbs: [patch]
{{/* patch: the mark and the deletion cost of a pod that is to leave at a scale-in. delete: a pod that was drained and
then stayed, which takes no request any more. RBAC can name neither single fields nor pods by label. */}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch, delete]
{{/* Whether the claim of a model is there, before pods are replaced by others that would need it. */}}
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [services, serviceaccounts, secrets]
  verbs: [get, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, create, patch]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* (context, Auto|Always|Never, kind of monitoring.coreos.com/v1): not empty if it is to be made. */}}
{{- define "shift.wanted" -}}
{{- $context := index . 0 }}{{ $mode := index . 1 }}{{ $kind := index . 2 }}
{{- if eq $mode "Always" }}yes
{{- else if and (eq $mode "Auto") ($context.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind)) }}yes
{{- end }}
{{- end }}
